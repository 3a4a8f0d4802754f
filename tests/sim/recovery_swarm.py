"""What a seed with recoveries has: see `recoveries.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySwarm:
    """What a seed with recoveries has. Times are in seconds."""

    every_s: float
    build_s: float
    failure_chance: float
    """How often planning or building fails."""
    wrong_chance: float
    """How often a member comes to another state than the others."""
    strike_chance: float
    """How often a member crashes at a step of a recovery."""
    undo_chance: float
    abort_chance: float
    archive_s: float
    """How far the archive is behind."""
