"""Bugs to plant in recoveries of the live cluster. See `bugs.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftha.core.log import RaftLog
from raftha.entry import Entry, LogPosition
from raftha.node.recovery import member as member_module
from raftha.node.recovery.leading import Leading
from raftha.node.recovery.member import Member, Stage
from raftha.node.recovery.recovery import Recovery
from raftha.storage.directory import snapshot
from raftha.storage.log.wal import Wal
from raftha.storage.state.catalog import Catalog
from raftha.storage.state.recoveries import RecoveryRecord
from raftha.storage.state.restored import MetaOnly, meta_behind, wanted_restore
from raftha.storage.state.sessions import Sessions, _Session
from raftha.storage.state.state import State
from tests.sim.planting import Bug, Patch


def _changed_meta(change: Callable[[State, RecoveryRecord], None]) -> list[Patch]:
    """Have the meta behind a RESTORE changed like this."""

    def changed(state: State, entry: Entry) -> bytes:
        found = wanted_restore(state, entry)
        assert found is not None
        behind = State(MetaOnly(meta_behind(state, entry)), state.machine)
        change(behind, found[1])
        return behind.freeze().meta

    return [(member_module, "meta_behind", changed)]


def sequence_not_advanced_by_a_restore() -> list[Patch]:
    """Behind a RESTORE commands are numbered as they were then."""

    def change(behind: State, record: RecoveryRecord) -> None:
        behind.applied = behind.applied._replace(last_sequence=record.to_sequence)

    return _changed_meta(change)


def sessions_go_back_with_the_state() -> list[Patch]:
    """Behind a RESTORE the sessions are those of then: what was undone is applied when repeated."""

    def change(behind: State, record: RecoveryRecord) -> None:
        for session in behind._sessions._sessions.values():
            _forget_later(behind._sessions, session, record.to_sequence)

    return _changed_meta(change)


def _forget_later(sessions: Sessions, session: _Session, to_sequence: int) -> None:
    for number, kept in list(session.kept.items()):
        if kept.first_sequence > to_sequence:
            sessions._forget(session, number)
            session.floor = min(session.floor, number)


def member_without_the_state_skips_the_restore() -> list[Patch]:
    """A member that has not prepared the state applies the RESTORE like any entry."""
    on_restore = Member.on_restore

    def skip(self: Member, entry: Entry) -> bool:
        prepared = self._state.catalog.recoveries.prepared
        if prepared is not None and self._stage(prepared.id)[0] is not Stage.READY:
            self._state.is_restoring = True
            return False
        return on_restore(self, entry)

    return [(Member, "on_restore", skip)]


def restore_acted_on_when_appended() -> list[Patch]:
    """A RESTORE counts as soon as it is on this node's disk."""

    def take(self: RaftLog) -> Entry | None:
        index = self.applied + 1
        is_next = bool(self._restores) and self._restores[0] == index != self.stopped_at
        if not is_next or index > self.persisted:
            return None
        self.stopped_at = index
        return self.window[index - self.anchor.index - 1]

    return [(RaftLog, "take_restore", take)]


def application_goes_on_beyond_a_restore() -> list[Patch]:
    """Nothing stops in front of a RESTORE: the old pairs get the new position."""
    apply = State._apply_restore

    def apply_anyway(self: State, entry: Entry) -> None:
        self.is_restoring = True
        apply(self, entry)

    return [
        (RaftLog, "_record_kind", _without_restores(RaftLog._record_kind)),
        (State, "_apply_restore", apply_anyway),
    ]


def _without_restores(record: Callable[[RaftLog, Entry], None]) -> Callable[[RaftLog, Entry], None]:
    def record_kind(self: RaftLog, entry: Entry) -> None:
        record(self, entry)
        self._restores.clear()

    return record_kind


def sources_expire_during_a_recovery() -> list[Patch]:
    """Retention gives up backups that members are reading for a recovery."""
    return [
        (Catalog, "_check_no_recovery", lambda self: None),
        (Recovery, "sources", lambda self: frozenset()),
        (Recovery, "is_under_way", property(lambda self: False)),
    ]


def prepared_state_removed_at_a_start() -> list[Patch]:
    """A node that starts removes what it has prepared, since it has yet to apply what it is for."""
    is_over = Member._is_over

    def is_over_or_unknown(self: Member, prepared: RecoveryRecord | None) -> bool:
        return (prepared is None and self._work.prepared is not None) or is_over(self, prepared)

    return [(Member, "_is_over", is_over_or_unknown)]


def restore_before_a_majority_is_ready() -> list[Patch]:
    """The leader has all go back as soon as it has the state itself."""
    return [(Leading, "_is_agreed", lambda self, votes: self._core.id in votes.ready)]


def restore_before_all_is_archived() -> list[Patch]:
    """The leader doesn't wait for the archive, so an undo may find less than there was."""

    def is_at_rest(self: Leading) -> bool:
        return self._state.applied.index == self._core.log.last_index

    return [(Leading, "_is_at_rest", property(is_at_rest))]


def different_states_agree() -> list[Patch]:
    """Nothing compares what the members have come to."""
    why_abort = Leading._why_abort

    def why(self: Leading, record: RecoveryRecord, votes: Any, now: float) -> str:
        same = dict.fromkeys(votes.ready, "")
        return why_abort(self, record, votes._replace(ready=same), now)

    go_on = Member._go_on

    def go_on_anyway(self: Member, stop: Any, now: float) -> None:
        go_on(self, stop._replace(digest=self._stage(stop.record.id)[1]), now)

    return [(Leading, "_why_abort", why), (Member, "_go_on", go_on_anyway)]


def log_that_holds_the_snapshot_is_replaced() -> list[Patch]:
    """A snapshot for a state in front of a RESTORE takes the log's place, too."""

    def begin_log(wal: Wal, position: LogPosition) -> None:
        if wal.base != position:
            wal.reset(position)

    return [(snapshot, "begin_log", begin_log)]


def stopped_member_takes_no_snapshot() -> list[Patch]:
    """A log that has a snapshot's last entry never needs it, whatever the state can apply."""
    return [(snapshot, "has_restore", lambda wal, after, last: False)]


def writes_are_held_for_ever() -> list[Patch]:
    """A leader that has proposed a RESTORE, or given a recovery up, forms no batch any more."""

    def hold(self: Leading, now: float | None) -> None:
        if now is not None and self._held_at is None:
            self._held_at = now
            self._around.hold(True)

    return [(Leading, "_hold", hold)]


BUGS: tuple[Bug, ...] = (
    sequence_not_advanced_by_a_restore,
    sessions_go_back_with_the_state,
    member_without_the_state_skips_the_restore,
    restore_acted_on_when_appended,
    application_goes_on_beyond_a_restore,
    sources_expire_during_a_recovery,
    prepared_state_removed_at_a_start,
    restore_before_a_majority_is_ready,
    restore_before_all_is_archived,
    different_states_agree,
    log_that_holds_the_snapshot_is_replaced,
    stopped_member_takes_no_snapshot,
    writes_are_held_for_ever,
)
