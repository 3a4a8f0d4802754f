"""What a leader does to the backups that there are: it finds out, adopts, retires and deletes.

Theory of operation. One round after the other, each in three steps:

    list      what the destinations hold, compared with the catalog
              -> adopt what it doesn't know; `found` where something is lost or there again
    retire    what no rule keeps (`raftha/storage/backup/retention.py`), and what has failed
    delete    what is retired, from each destination; once nothing is left: `deleted`

A round begins when this node has become the leader, after a completed backup, once a day, and on
request. It proposes nothing on the grounds of a listing from before its leadership.

Deletion begins only after `retire` is applied here: it is committed, and no leader can take it
back. So it does no harm if this node is no leader any more by then.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence

from raftha.config.backup import BackupConfig
from raftha.config.pitr import PitrConfig
from raftha.core import Raft
from raftha.events import BackupMissing, RetentionRefused
from raftha.node.backup.choosing import lacking
from raftha.node.backup_work import Deletion, Listing
from raftha.node.host import Host
from raftha.storage.backup.retention import Decisions, candidate_of, decide
from raftha.storage.backup.window import US_PER_HOUR, read_by
from raftha.storage.state.catalog import (
    COMPLETED,
    FAILED,
    MISSING,
    RETIRED,
    Adopt,
    BackupRecord,
    Change,
    Deleted,
    Found,
    Retire,
    Verdict,
)
from raftha.storage.state.state import State

RECOVERS = "a recovery reads it"
FIRST_S, INTERVAL_S = 10.0, 86_400.0
"""When a new leader's first round begins, and the time from one to the next."""
ASK_AGAIN_S = 3600.0
"""How long a listing counts when a backup is due, and a destination lacked what it builds on."""
LISTING_S = 120.0
"""A backup that is due waits no longer for a listing."""


class _Step(enum.Enum):
    IDLE = 0
    LISTING = 1
    RECORDING = 2
    RETIRING = 3
    DELETING = 4
    FORGETTING = 5


class Upkeep:
    """The rounds of one node, while it leads. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        state: State,
        host: Host,
        config: BackupConfig | None,
        pitr: PitrConfig | None,
        now_us: Callable[[], int],
        has_diverged: Callable[[int, int], bool],
        *,
        sources: Callable[[], frozenset[int]],
    ) -> None:
        """`pitr`: None without point-in-time recovery. `now_us` returns log time.

        `has_diverged`: of a node, as of an entry. `sources` are the backups that members may read
        for a recovery.
        """
        self._has_diverged = has_diverged
        self._sources = sources
        self._core = core
        self._state = state
        self._host = host
        self._config = config
        self._window_us = pitr.retention_hours * US_PER_HOUR if pitr is not None else 0
        self._now_us = now_us
        self._step = _Step.IDLE
        self._round = 0
        """Counts rounds: what comes in from an earlier one is out of date."""
        self._due_at = float("inf")
        self._listed_at = float("-inf")
        self._todo: deque[Change] = deque()
        self._refused: dict[tuple[int, str], str] = {}
        """Deletions that a destination refuses."""
        self._gone: set[tuple[int, str]] = set()
        """What is deleted already, of backups that are still in another destination."""
        self.errors: dict[str, str] = {}
        """Why destinations couldn't be listed the last time."""

    def begin(self, now: float) -> None:
        """This node has become the leader."""
        self._enter(_Step.IDLE)
        self._due_at = now + FIRST_S
        self._listed_at = float("-inf")

    def wish(self, now: float) -> None:
        """Have a round soon."""
        self._due_at = min(self._due_at, now)

    def is_ready_to_begin(self, now: float) -> bool:
        """Whether a backup that is due may begin; if not, a listing comes first.

        If a destination lacks what the backup would build on, it matters whether it is back.
        """
        assert self._config is not None
        if not lacking(self._config, self._state.catalog, self._core.membership.lineage):
            return True
        age_s = now - self._listed_at
        if self._step is _Step.LISTING:
            return age_s >= LISTING_S
        if age_s >= ASK_AGAIN_S:
            self.wish(now)
            return False
        return True

    def is_reachable(self, destination: str) -> bool:
        """Whether the last listing found this destination."""
        return destination not in self.errors

    def next_change(self, now: float) -> Change | None:
        """Return the next change to propose, once the one before it is applied; None for none."""
        if self._step is _Step.IDLE and now >= self._due_at:
            self._list(now)
        if self._todo:
            return self._todo.popleft()
        if self._step is _Step.RECORDING:
            self._enter(_Step.RETIRING)
            self._retire()
        elif self._step is _Step.RETIRING:
            self._enter(_Step.DELETING)
            self._delete()
        elif self._step is _Step.FORGETTING:
            self._enter(_Step.IDLE)
        return self._todo.popleft() if self._todo else None

    def on_applied(self, verdict: Verdict) -> None:
        """An entry has changed the catalog, or was refused."""
        if isinstance(verdict.change, Deleted) and not verdict.refusal:
            going = {record.id for record in verdict.before}
            self._gone = {each for each in self._gone if each[0] not in going}
            self._refused = {k: why for k, why in self._refused.items() if k[0] not in going}

    def _enter(self, step: _Step) -> None:
        self._step = step
        if step in (_Step.IDLE, _Step.LISTING):
            self._round += 1
            self._todo.clear()

    def _own(self) -> tuple[BackupRecord, ...]:
        """The records of this lineage: others' backups may be another cluster's."""
        lineage = self._core.membership.lineage
        return tuple(r for r in self._state.catalog.records() if r.lineage == lineage)

    # ---------------------------------------------------------------- listing

    def _list(self, now: float) -> None:
        self._due_at = now + INTERVAL_S
        self._listed_at = now
        self._enter(_Step.LISTING)
        number, as_of, known = self._round, self._state.applied.index, self._own()

        def done(listing: Listing) -> None:
            if self._round == number and self._step is _Step.LISTING:
                self._on_listed(listing, as_of, known)

        self._host.backups.list(self._core.membership.lineage, known, done)

    def _on_listed(self, listing: Listing, as_of: int, known: Sequence[BackupRecord]) -> None:
        self.errors = dict(listing.errors)
        self._enter(_Step.RECORDING)
        for record in sorted(listing.adoptable):
            self._adopt(record, as_of)
        for record in sorted(listing.leftovers):
            if self._state.catalog.get(record.id) is None:
                self._adopt(record, as_of)
        for record in known:
            if record.state in (COMPLETED, MISSING):
                self._compare(record, listing)
        self._host.wake()

    def _adopt(self, record: BackupRecord, as_of: int) -> None:
        if record.id > as_of:
            return  # It has begun since, and is in the catalog.
        if self._has_diverged(record.node, record.id):
            known = self._state.catalog.get(record.id)
            if known is not None and known.state == FAILED:
                self._todo.append(Retire((record.id,), record.lineage))
            return
        self._todo.append(Adopt(as_of, tuple(record)))

    def _compare(self, record: BackupRecord, listing: Listing) -> None:
        """Record where a backup is, if that has changed."""
        unknown = {name for name in record.destinations if name in listing.errors}
        where = tuple(sorted(unknown | set(listing.found.get(record.id, ()))))
        if set(where) == set(record.destinations):
            return
        self._todo.append(Found(record.id, where))
        for name in record.destinations:
            if name not in where:
                self._host.emit(
                    BackupMissing(
                        reporter=self._core.id,
                        backup_id=record.id,
                        destination=name,
                        reason=listing.lost.get((record.id, name), "it is not there"),
                    )
                )

    # ---------------------------------------------------------------- retention

    def decide(self) -> Decisions:
        """Decide what becomes of each backup now."""
        assert self._config is not None
        now_us, sources = self._now_us(), self._sources()
        held = [
            r._replace(pins=(*r.pins, (RECOVERS, 0))) if r.id in sources else r for r in self._own()
        ]
        return decide(
            [candidate_of(record, now_us, self.refused_by(record.id)) for record in held],
            self._config.retention,
            lineage=self._core.membership.lineage,
            destinations=self._config.destinations,
            now_us=now_us,
            window_us=self._window_us,
            needed=read_by(self._state.catalog.recoveries.records(), now_us - self._window_us),
        )

    def refused_by(self, backup_id: int) -> set[str]:
        """The destinations that refuse to delete this backup, as far as this node has tried."""
        return {name for refused_id, name in self._refused if refused_id == backup_id}

    def _retire(self) -> None:
        going = self.decide().retire
        if going:
            self._todo.append(Retire(tuple(going), self._core.membership.lineage))

    def _delete(self) -> None:
        wanted: dict[str, list[BackupRecord]] = {}
        for name, ids in self._deletions().items():
            if self.is_reachable(name):
                todo = [i for i in ids if (i, name) not in self._gone]
                records = [self._state.catalog.get(i) for i in todo]
                assert all(r and r.state == RETIRED for r in records), "retired ones are deleted"
                wanted |= {name: [r for r in records if r is not None]} if todo else {}
        if not wanted:
            self._forget()
            return
        number = self._round

        def done(deletion: Deletion) -> None:
            if self._round == number and self._step is _Step.DELETING:
                self._on_deleted(deletion)

        self._host.backups.delete(wanted, done)

    def _deletions(self) -> dict[str, list[int]]:
        """What may be deleted from each destination, children before their parents.

        What goes from all destinations that have it goes from the others too: a try that failed
        there may have left something.
        """
        assert self._config is not None
        deletions = {name: list(ids) for name, ids in self.decide().deletions.items()}
        for record in reversed(self._own()):
            had = set(record.destinations) & set(self._config.destinations)
            if record.state == RETIRED and all(record.id in deletions.get(n, ()) for n in had):
                for name in self._config.destinations:
                    if record.id not in deletions.setdefault(name, []):
                        deletions[name].append(record.id)
        return deletions

    def _on_deleted(self, deletion: Deletion) -> None:
        self._gone |= deletion.gone
        for (backup_id, name), reason in deletion.refused.items():
            if (backup_id, name) not in self._refused:
                self._host.emit(
                    RetentionRefused(
                        reporter=self._core.id,
                        backup_id=backup_id,
                        destination=name,
                        reason=reason,
                    )
                )
        self._refused.update(deletion.refused)
        self._forget()
        self._host.wake()

    def _forget(self) -> None:
        """Have those forgotten of which no destination has anything."""
        assert self._config is not None
        self._enter(_Step.FORGETTING)
        gone = tuple(
            record.id
            for record in self._own()
            if record.state == RETIRED
            and all((record.id, name) in self._gone for name in self._config.destinations)
        )
        if gone:
            self._todo.append(Deleted(gone))
