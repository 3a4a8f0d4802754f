"""The work that a recovery is, as a node asks its host to do it: planning, and building a state.

The real one is `raftha/runtime/recovery_thread.py`, the simulated one `tests/sim/recoveries.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from raftha.storage.directory.restoring import PreparedState
from raftha.storage.state.recoveries import RecoveryRecord

PairsProgress = Callable[[int, int], None]
"""Gets how much was done of how much there is to do, in bytes."""


class RecoveryTarget(NamedTuple):
    """The moment whose state is wanted: a sequence, or a time in microseconds; one of them is 0."""

    lineage: str
    sequence: int
    time_us: int


class PlannedRecovery(NamedTuple):
    """What came of planning: the moment and the backups that are read; or an `error` of `kind`."""

    kind: str = ""
    error: str = ""
    lineage: str = ""
    to_sequence: int = 0
    to_us: int = 0
    backups: tuple[int, ...] = ()


class BuiltState(NamedTuple):
    """What came of building: what was prepared, durably; or why nothing was."""

    error: str
    prepared: PreparedState | None = None


class RecoveryWork(Protocol):
    """Does the work of recoveries, in the background. Results come as calls on the node's thread.

    At most one state is built, and one recovery planned at a time.
    """

    @property
    def prepared(self) -> PreparedState | None:
        """The state that is prepared, whole and durable, also in an earlier life."""
        ...

    def plan(self, target: RecoveryTarget, done: Callable[[PlannedRecovery], None]) -> None:
        """Find out whether a target can be reached, and which moment that is exactly."""
        ...

    def build(
        self, record: RecoveryRecord, on_progress: PairsProgress, done: Callable[[BuiltState], None]
    ) -> None:
        """Build the state of a recovery, in the place of any that was prepared before."""
        ...

    def discard(self) -> None:
        """Give up the state that is being built, and remove the one that is prepared."""
        ...

    def restore(self, recovery_id: int, meta: bytes) -> None:
        """End this node, and open it with the prepared state and this meta."""
        ...


class NoRecoveryWork:
    """The `RecoveryWork` of a node whose settings have no backups.

    It can't build a state. In front of a RESTORE it gets that of another member.
    """

    prepared = None

    def plan(self, target: RecoveryTarget, done: Callable[[PlannedRecovery], None]) -> None:
        done(PlannedRecovery("InvalidRequest", NO_SETTINGS))

    def build(
        self, record: RecoveryRecord, on_progress: PairsProgress, done: Callable[[BuiltState], None]
    ) -> None:
        done(BuiltState(NO_SETTINGS))

    def discard(self) -> None:
        """There is nothing."""

    def restore(self, recovery_id: int, meta: bytes) -> None:
        raise AssertionError("no state is prepared on a node without settings for backups")


NO_SETTINGS = "it has no settings for recovery: give all members the table [backup] and enable_pitr"
