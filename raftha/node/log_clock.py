"""Log time: how a leader stamps its entries, and when it doesn't believe its own wall clock.

Theory of operation. Log time never goes back. So one stamp of a clock that is years ahead would
stay: for all that time no session expires, and commands see a clock that stands still. A leader
therefore compares its wall clock with the other voters', as their replies showed them
(`raftha/core/clocks.py`), and stamps entries with the time on which most of them agree.

  T1  Of the voters' clocks that are known, the *reference* is the one with which most agree within
      `max_clock_offset_ms`. With equal support, it is the one closest to log time, which was agreed
      on earlier, and then the one that is behind.
  T2  A clock that agrees with the reference stamps the entries itself. Otherwise the reference
      does, carried on by the clock that is never set.
  T3  A clock is *wrong* if it differs from the reference, and the reference has more support. A
      leader with a wrong clock hands over (`raftha/node/watch/clocks.py`).
  T4  A sole voter has no other clock to ask. A step of its clock by more than the limit is believed
      once it has lasted for `BELIEVED_AFTER_S`.
  T5  While log time is ahead of the clock, it runs at half speed. It never stands still.

Readings are distances from the clock that runs on in suspend and is never stepped (`boottime_ns`).
So a step of the own wall clock shows at the next stamp, not at the next heartbeat: a stamp compares
the own distance with that of the last examination, and examines again if it has moved.

A leader has readings of a quorum from the beginning: votes bring them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from raftha.clock import Clock
from raftha.core import Raft
from raftha.core.clocks import ClockReading

STEP_US = 100_000
"""A step of the own clock by more than this is examined before the next stamp."""
BELIEVED_AFTER_S = 60
READING_S = 600
"""Older readings don't count: the other clock may have been set since."""
_NEVER = -(1 << 62)


class Verdict(NamedTuple):
    """What the comparison of the voters' clocks says.

    `reference_us`: the base of the reference (T1). `offsets_us`: how far the clock of each member
    with a known one is ahead of it. `is_wrong`: T3, for this node's own clock.
    """

    reference_us: int
    offsets_us: Mapping[int, int]
    is_wrong: bool


class LogClock:
    """The stamps of one node's entries, while it leads. All calls come from the node's thread."""

    def __init__(self, core: Raft, clock: Clock, max_offset_ms: int) -> None:
        self._core = core
        self._clock = clock
        self._max_us = 1000 * max_offset_ms
        self._term = 0
        """The term of the last examination."""
        self._stamped_us = self._boottime_us()
        self._believed_us = self._own_base_us()
        """The own base that a sole voter believes (T4)."""
        self._doubted_at_us: int | None = None
        self._reference_us = self._believed_us
        self._good_us = _NEVER
        """The own base at the last examination, if the own clock stamps entries (T2)."""

    def begin(self) -> None:
        """A leader is known, perhaps this node."""
        self._stamped_us = self._boottime_us()

    def on_tick(self) -> None:
        """A heartbeat interval has passed in which this node didn't lead."""
        self._believe(self._own_base_us(), self._boottime_us())

    def stamp(self, last_us: int) -> int:
        """Return the time of the next entry; `last_us` is that of the last one."""
        boottime_us, base_us = self._boottime_us(), self._own_base_us()
        if self._term != self._core.term or abs(base_us - self._good_us) > STEP_US:
            # What this node knew as a follower says nothing about the others' clocks.
            self.examine()
            base_us = self._reference_us if self._good_us == _NEVER else base_us
        time_us = boottime_us + base_us
        if time_us <= last_us:
            time_us = last_us + max(boottime_us - self._stamped_us, 0) // 2
        self._stamped_us = boottime_us
        return time_us

    def now_us(self) -> int:
        """Return the time on which most voters agree, without stamping anything."""
        return self._boottime_us() + self.examine().reference_us

    def examine(self) -> Verdict:
        """Compare the clocks of the voters that are known."""
        self._term = self._core.term
        now_us = self._boottime_us()
        own = ClockReading(self._own_base_us(), 0, now_us)
        known = {
            member: reading
            for member, reading in self._core.clocks.by_member.items()
            if member in self._core.membership.members
            and now_us - reading.taken_us <= READING_S * 1_000_000
        }
        known[self._core.id] = own
        clocks = [known[voter] for voter in self._core.membership.voters if voter in known] or [own]
        reference = self._find_reference(clocks, now_us)
        if clocks == [own]:
            reference = reference._replace(base_us=self._believe(own.base_us, now_us))
        does_agree = own.agrees(reference, self._max_us)
        has_more = self._support(reference, clocks) > self._support(own, clocks)
        self._reference_us = reference.base_us
        self._good_us = own.base_us if does_agree else _NEVER
        offsets = {member: reading.base_us - reference.base_us for member, reading in known.items()}
        return Verdict(reference.base_us, offsets, has_more and not does_agree)

    def _find_reference(self, clocks: list[ClockReading], now_us: int) -> ClockReading:
        log_base_us = self._core.log.last.time_us - now_us
        return max(
            clocks,
            key=lambda clock: (
                self._support(clock, clocks),
                -abs(clock.base_us - log_base_us),
                -clock.base_us,
            ),
        )

    def _support(self, clock: ClockReading, clocks: list[ClockReading]) -> int:
        return sum(clock.agrees(other, self._max_us) for other in clocks)

    def _believe(self, base_us: int, now_us: int) -> int:
        """Return the base that a sole voter believes, now that its own is `base_us` (T4)."""
        if abs(base_us - self._believed_us) <= self._max_us:
            self._believed_us, self._doubted_at_us = base_us, None
        elif self._doubted_at_us is None:
            self._doubted_at_us = now_us
        elif now_us - self._doubted_at_us >= BELIEVED_AFTER_S * 1_000_000:
            self._believed_us, self._doubted_at_us = base_us, None
        return self._believed_us

    def _boottime_us(self) -> int:
        return self._clock.boottime_ns() // 1000

    def _own_base_us(self) -> int:
        return self._clock.time_us() - self._boottime_us()
