"""The parts that a node may have in a term."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """What a node is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
