"""The comparison of the members' states, as its users see it (`watch/divergence.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from raftha.entry import LogPosition


class Outcome(NamedTuple):
    """A comparison that has ended: of so many `voters`, `agreed` had the same `digest` then."""

    position: LogPosition
    digest: bytes
    agreed: int
    voters: int


class Comparison(Protocol):
    """Compares the members' states, as the leader."""

    @property
    def outcome(self) -> Outcome | None:
        """The last comparison that this node has made."""
        ...

    def compare_with(self, propose: Callable[[], int | None], now: float) -> int | None:
        """Propose an entry, and have the states compared as of it if that is possible."""
        ...

    def compare_now(self, propose: Callable[[], int | None], now: float) -> int | None:
        """As `compare_with`, but propose nothing, and return None, if it isn't possible."""
        ...

    def is_comparing(self, index: int) -> bool: ...
    def has_diverged(self, node_id: int, index: int) -> bool: ...
