"""How long a node waits before it asks for votes, in ticks."""

from __future__ import annotations

from collections.abc import Callable


def election_timeout_ticks(
    election: int,
    *,
    is_alone: bool,
    is_suspecting: bool,
    terms_without_leader: int,
    better_regions: int,
    random_below: Callable[[int], int],
) -> int:
    """How long to wait for a leader that is silent or unknown.

    `better_regions`: how many regions with voters are preferred over this node's.
    """
    assert election > 0, "an election timeout is positive"
    base = spread = election
    if is_alone:
        base = spread = 1
    elif is_suspecting:
        # The leader is probably dead, and a first attempt failed. Try again well within the usual
        # timeout, spread widely enough that two candidates don't keep splitting the vote.
        base = max(election // 5, 2)
        spread = 2 * base
    delay = better_regions * max(base // 2, 1)
    # Each term without a leader doubles the timeout. On slow disks or networks the next attempt
    # would otherwise always come before the votes of the last one.
    factor = 1 << min(terms_without_leader, 6)
    base = max(base, min(base * factor, 16 * election))
    spread = max(spread, min(spread * factor, 16 * election))
    return base + random_below(spread) + delay


def disconnect_timeout_ticks(
    election: int, before: int, *, better_regions: int, random_below: Callable[[int], int]
) -> int:
    """How long to wait once the connection to the leader broke; `before` voters go first."""
    return 1 + 3 * before + random_below(3) + better_regions * max(election // 5, 2)
