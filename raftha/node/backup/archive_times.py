"""How old is what is not archived: samples of the log that a node has applied.

Theory of operation. What a destination lacks is known by its sequence: commands after that are lost
together with the cluster. Entries without commands are no loss, so they make nothing old. The age
is that of the first entry with a command that is not archived. While memory has it, it is exact;
after that the samples of each tick tell, and what the archiver has read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from raftha.core import RaftLog
from raftha.storage.state.state import State

SAMPLES_MAX = 512
"""With more of them, every other one is dropped."""


class Sample(NamedTuple):
    """Where the state was at some moment; `applied_bytes`: of log, in this life of the node."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which has no callers
    sequence: int
    time_us: int
    applied_bytes: int


class ArchiveTimes:
    """The samples of one node. All calls come from the node's thread."""

    def __init__(self, log: RaftLog, state: State, applied_bytes: Callable[[], int]) -> None:
        self._log = log
        self._state = state
        self._applied_bytes = applied_bytes
        self._samples = [self._now()]

    def _now(self) -> Sample:
        applied = self._state.applied
        return Sample(applied.index, applied.last_sequence, applied.time_us, self._applied_bytes())

    def sample(self, archived: int) -> None:
        """Note where the state is; entries up to `archived` are in a destination."""
        samples = self._samples
        if self._state.applied.index != samples[-1].index:
            samples.append(self._now())
        while len(samples) > 1 and samples[1].index <= archived:
            del samples[0]
        if len(samples) > SAMPLES_MAX:
            del samples[1:-1:2]

    def pending_us(self, sequence: int) -> int:
        """The time of the first command after `sequence`; 0 if the state has applied none."""
        if self._state.applied.last_sequence <= sequence:
            return 0
        log = self._log
        if log.anchor.last_sequence <= sequence:
            at = bisect_right(log.window, sequence, key=lambda entry: entry.last_sequence)
            return log.window[at].time_us
        later = (sample.time_us for sample in self._samples if sample.sequence > sequence)
        return next(later, self._state.applied.time_us)

    def bytes_after(self, index: int) -> int:
        """About how much log the state has applied after this entry, in this life of the node."""
        before = self._samples[0].applied_bytes
        for sample in self._samples:
            if sample.index <= index:
                before = sample.applied_bytes
        return self._applied_bytes() - before
