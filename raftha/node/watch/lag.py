"""How far behind each replica is: the leader measures and reports it, each node evaluates it.

Theory of operation. A replica's lag is the age of the oldest entry in the leader's log that the
replica has not applied. The leader records when it appended each entry (`AppendTimes`), and each
follower's reply carries its applied index. The lag of a silent replica is at least the time since
its last message. So it grows while the replica is cut off, even if nothing is written. A new leader
takes over the lags of the time before its election from its predecessor's reports.

The leader sends all rows to all members every heartbeat interval (`ReplicaReport`), so that every
node's status shows the same table. A node without fresh reports is cut off, or there is no leader;
it ages all rows, its own included.

    replica                                        cluster
    connecting    it was not connected yet         initializing  no leader was known yet
    syncing       connected; lacks what there      syncing       voters connect or sync
                  was when it connected            healthy       all voters are active, and enough
    active        up to `max_lag_ms` behind        degraded      a voter lags or is disconnected,
    lagging       further behind                                 or there are too few of them
    disconnected  the connection is lost           failed        no quorum

A learner that connects is syncing as long as it sends messages, however old the log is that it
lacks: it needs all of the log, and that calls for no warning. A voter that far behind is lagging at
once.

Quorum is lost when a leader loses contact with a majority, when no leader is known and this node
isn't connected to a majority, or when no leader is known for several election timeouts. An election
among connected nodes is no loss of quorum.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from raftha.config import HaConfig
from raftha.core import Raft
from raftha.events import (
    HaEvent,
    LeaderLost,
    QuorumLost,
    QuorumRestored,
    ReplicaAdded,
    ReplicaRemoved,
    ReplicationLagWarning,
)
from raftha.membership import Membership
from raftha.node.messages import ReplicaReport, ReplicaRow
from raftha.types import Health, ReplicaState, ReplicaStatus, ReplicationState

STATES = tuple(ReplicaState)
APPEND_TIMES_MAX = 4096
SILENT_HEARTBEATS = 4
"""A replica, or the leader's reports, are silent after this many heartbeat intervals."""
LEADERLESS_TIMEOUTS = 4
"""The quorum is lost after this many election timeouts without a leader."""
REARM_S_MAX = 10.0
"""A warning repeats only after the lag was small for `max_lag_ms`, or for this long."""


class LagHost(Protocol):
    """The part of the host that the lag tracker uses."""

    def send(self, message: ReplicaReport) -> None: ...
    def is_connected(self, peer: int) -> bool: ...
    def emit(self, event: HaEvent) -> None: ...


class AppendTimes:
    """When entries were appended; for older ones an estimate that is never too late."""

    def __init__(self, index: int, now: float) -> None:
        """Entries up to `index` existed before `now`."""
        self.before = self.last_index = index
        self._firsts = [0]
        self._times = [now]

    def record_appends(self, last_index: int, now: float) -> None:
        """The log now ends at `last_index`."""
        if last_index <= self.last_index:
            return
        self._firsts.append(self.last_index + 1)
        self._times.append(now)
        self.last_index = last_index
        if len(self._firsts) > APPEND_TIMES_MAX:
            # An entry whose time is dropped gets the time of the one before: its age is overstated.
            half = APPEND_TIMES_MAX // 2
            self._firsts[1:half] = self._firsts[1:half:2]
            self._times[1:half] = self._times[1:half:2]

    def time(self, index: int) -> float:
        """Return the time entry `index` was appended, or an earlier one."""
        return self._times[bisect_right(self._firsts, index) - 1]


class _ReplicaLag:
    """What a node records about one replica."""

    def __init__(self, now: float) -> None:
        self.known_since = now
        self.was_connected = False
        self.is_synced = False
        self.is_joining = False
        """As leader: it connected as a learner and has not been in sync since."""
        self.target: int | None = None
        """As leader: it is in sync once it has applied this entry."""
        self.behind_since: float | None = None
        """As leader: when it fell behind, if that was before this leadership."""
        self.last_contact_at = now
        self.is_warned = False
        self.calm_since: float | None = None


class LagTracker:
    """The lag of all replicas, as one node knows it. All calls come from the node's thread."""

    def __init__(
        self,
        config: HaConfig,
        core: Raft,
        host: LagHost,
        last_contact: Mapping[int, float],
        position: Callable[[], tuple[int, int]],
        now: float,
        clock_offset_ms: Callable[[int], int] = lambda node_id: 0,
    ) -> None:
        """`last_contact` holds the time of each member's last message.

        `position` returns the last index and sequence that this node has applied, and
        `clock_offset_ms` how far a member's wall clock is ahead of the cluster's.
        """
        self._core = core
        self._host = host
        self._last_contact = last_contact
        self._position = position
        self._clock_offset_ms = clock_offset_ms
        self._factor = config.replication_factor
        self._max_lag_s = config.replication.max_lag_ms / 1000
        self._timeout_s = config.election_timeout_ms / 1000
        self._silence_s = SILENT_HEARTBEATS * config.heartbeat_interval_ms / 1000
        self._append_times: AppendTimes | None = None
        self._replicas: dict[int, _ReplicaLag] = {}
        self._rows: dict[int, ReplicaRow] = {}
        self._rows_at = self._started_at = self._led_at = now
        self._has_quorum: bool | None = None
        self._lost_at = now

    # ---------------------------------------------------------------- what happens

    def on_leader(self, now: float) -> None:
        """A leader is known; if it is this node, start measuring."""
        if not self._core.is_leader:
            self._append_times = None
            return
        rows = self.rows(now)
        self._append_times = AppendTimes(self._core.log.last_index - 1, now)
        self._replicas = {peer: self._replicas[peer] for peer in rows if peer in self._replicas}
        for peer, row in rows.items():
            replica = self._replica(peer, now)
            replica.is_synced, replica.target = False, None
            replica.last_contact_at = now - row.silent_ms / 1000 if self._rows else now
            lag_s = row.lag_ms / 1000 if self._rows else 0.0
            replica.behind_since = now - lag_s if lag_s else None

    def on_events(self, events: Sequence[HaEvent], now: float) -> None:
        """Handle the core's events: a leader that lost its majority has lost the quorum."""
        for event in events:
            if isinstance(event, LeaderLost) and event.reason == "quorum" and self._has_quorum:
                self._set_quorum(is_there=False, now=now)

    def record_appends(self, now: float) -> None:
        """The log may have grown."""
        times = self._append_times
        if times is not None and (last_index := self._core.log.last_index) > times.last_index:
            times.record_appends(last_index, now)

    def on_report(self, report: ReplicaReport, now: float) -> None:
        """A report arrived; accept it if it is the current leader's."""
        if report.term == self._core.term and report.sender == self._core.leader:
            self._rows = {row.node_id: row for row in report.rows}
            self._rows_at = now

    def on_connection(self, now: float) -> None:
        """A connection was established or lost."""
        self._measure_all(now)

    def on_membership(self, before: Membership, after: Membership) -> None:
        """The state has applied another membership: emit the additions and removals."""
        for i in sorted(after.members.keys() - before.members.keys()):
            region = after.members[i].region
            self._host.emit(ReplicaAdded(reporter=self._core.id, node_id=i, region=region))
        for i in sorted(before.members.keys() - after.members.keys()):
            region = before.members[i].region
            self._host.emit(ReplicaRemoved(reporter=self._core.id, node_id=i, region=region))

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed."""
        core = self._core
        if self._measure_all(now):
            rows = tuple(self._rows.values())
            for peer in core.progress:
                self._host.send(ReplicaReport(to=peer, sender=core.id, term=core.term, rows=rows))
        self._watch_quorum(now)
        if self._rows:
            for row in self.rows(now).values():
                self._warn(row, now)

    # ---------------------------------------------------------------- what is known

    def rows(self, now: float) -> dict[int, ReplicaRow]:
        """Return the rows of all members, as of now."""
        age_s = now - self._rows_at
        members = self._core.membership.members
        if age_s <= self._silence_s and self._rows:
            known = self._rows
            return {peer: known.get(peer) or self._unknown(peer, 0) for peer in members}
        age_ms = int(1000 * age_s)
        return {peer: self._aged(peer, age_ms) for peer in members}

    def max_lag_ms(self, now: float) -> int:
        """Return the largest lag of a voter."""
        rows, voters = self.rows(now), self._core.membership.voters
        return max((rows[voter].lag_ms for voter in voters), default=0)

    def statuses(
        self, now: float, client_addresses: Mapping[int, str], health: Callable[[int], Health]
    ) -> tuple[ReplicaStatus, ...]:
        """Return the status of every member."""
        rows = self.rows(now).values()
        return tuple(self._status(row, client_addresses, health(row.node_id)) for row in rows)

    def _status(
        self, row: ReplicaRow, client_addresses: Mapping[int, str], health: Health
    ) -> ReplicaStatus:
        core, peer = self._core, row.node_id
        progress, member = core.progress.get(peer), core.membership.members[peer]
        match_index = row.match_index if peer in self._rows else None
        if peer == core.id:
            match_index = core.log.persisted
        elif progress is not None:
            match_index = progress.match
        return ReplicaStatus(
            node_id=peer,
            address=member.address,
            is_voter=member.is_voter,
            is_standby=member.is_standby,
            client_address=client_addresses.get(peer, ""),
            connected=peer == core.id or self._host.is_connected(peer),
            match_index=match_index,
            health=health,
            region=member.region,
            state=STATES[row.state],
            match_sequence=row.match_sequence,
            applied_index=row.applied_index,
            applied_sequence=row.applied_sequence,
            lag_ms=row.lag_ms,
            lag_sequences=row.lag_sequences,
            last_heard_ms=row.silent_ms,
            clock_offset_ms=row.clock_ahead_ms - row.clock_behind_ms,
        )

    def state(self, now: float) -> ReplicationState:
        """Return the state of the cluster; see the module's docstring."""
        if self._has_quorum is None:
            is_founded = bool(self._core.membership.voters)
            is_early = now - self._started_at <= self._max_lag_s or not is_founded
            return ReplicationState.INITIALIZING if is_early else ReplicationState.FAILED
        if not self._has_quorum:
            return ReplicationState.FAILED
        voters, rows = self._core.membership.voters, self.rows(now)
        states = {STATES[rows[voter].state] for voter in voters}
        if states & {ReplicaState.LAGGING, ReplicaState.DISCONNECTED}:
            return ReplicationState.DEGRADED
        if states != {ReplicaState.ACTIVE}:
            return ReplicationState.SYNCING
        is_enough = len(voters) >= self._factor
        return ReplicationState.HEALTHY if is_enough else ReplicationState.DEGRADED

    def _unknown(self, peer: int, lag_ms: int) -> ReplicaRow:
        connecting = STATES.index(ReplicaState.CONNECTING)
        return ReplicaRow(
            node_id=peer,
            state=connecting,
            match_index=0,
            match_sequence=0,
            applied_index=0,
            applied_sequence=0,
            lag_ms=lag_ms,
            lag_sequences=0,
            silent_ms=lag_ms,
        )

    def _aged(self, peer: int, age_ms: int) -> ReplicaRow:
        row = self._rows.get(peer)
        if row is None:
            return self._unknown(peer, age_ms)
        lag_ms, state = row.lag_ms + age_ms, STATES[row.state]
        is_far = lag_ms > 1000 * self._max_lag_s
        if is_far and state in (ReplicaState.ACTIVE, ReplicaState.SYNCING):
            state = ReplicaState.LAGGING
        silent_ms = row.silent_ms + age_ms
        return row._replace(state=STATES.index(state), lag_ms=lag_ms, silent_ms=silent_ms)

    # ---------------------------------------------------------------- measuring, as leader

    def _replica(self, peer: int, now: float) -> _ReplicaLag:
        if peer not in self._replicas:
            self._replicas[peer] = _ReplicaLag(now)
        return self._replicas[peer]

    def _measure_all(self, now: float) -> bool:
        """Measure all rows if this node leads; return True if it does."""
        if self._append_times is None or not self._core.is_leader:
            return False
        self._rows = {peer: self._measure(peer, now) for peer in self._core.membership.members}
        self._rows_at = now
        return True

    def _measure(self, peer: int, now: float) -> ReplicaRow:
        core, log, replica = self._core, self._core.log, self._replica(peer, now)
        if peer == core.id:
            match = log.persisted
            applied, sequence = self._position()
            replica.last_contact_at = now
        else:
            progress = core.progress[peer]
            match, applied, sequence = progress.match, progress.applied, progress.applied_sequence
            replica.last_contact_at = max(
                replica.last_contact_at, self._last_contact.get(peer, replica.last_contact_at)
            )
        lag_s = self._behind_s(replica, applied, now)
        silent_s = now - replica.last_contact_at
        if silent_s > self._silence_s:
            lag_s = max(lag_s, silent_s)
        state = self._decide_state(peer, replica, applied, lag_s, silent_s, now)
        match_sequence = log.sequence(match)
        clock_offset_ms = self._clock_offset_ms(peer)
        return ReplicaRow(
            node_id=peer,
            state=STATES.index(state),
            match_index=match,
            match_sequence=sequence if match_sequence is None else match_sequence,
            applied_index=applied,
            applied_sequence=sequence,
            lag_ms=int(1000 * lag_s),
            lag_sequences=max(log.last.last_sequence - sequence, 0),
            silent_ms=int(1000 * silent_s),
            clock_ahead_ms=max(clock_offset_ms, 0),
            clock_behind_ms=max(-clock_offset_ms, 0),
        )

    def _behind_s(self, replica: _ReplicaLag, applied: int, now: float) -> float:
        """Return the age of the oldest entry that a replica has not applied."""
        assert self._append_times is not None
        if applied >= self._core.log.last_index:
            replica.behind_since = None
            return 0.0
        since = self._append_times.time(applied + 1)
        if replica.behind_since is not None:
            if applied >= self._append_times.before:
                replica.behind_since = None
            else:
                since = min(since, replica.behind_since)
        return now - since

    def _decide_state(
        self,
        peer: int,
        replica: _ReplicaLag,
        applied: int,
        lag_s: float,
        silent_s: float,
        now: float,
    ) -> ReplicaState:
        if peer != self._core.id and not self._host.is_connected(peer):
            replica.target, replica.is_synced = None, False
            is_new = not replica.was_connected and now - replica.known_since <= self._max_lag_s
            return ReplicaState.CONNECTING if is_new else ReplicaState.DISCONNECTED
        if replica.target is None:
            replica.target, replica.was_connected = self._core.log.last_index, True
        replica.is_synced = replica.is_synced or applied >= replica.target
        if replica.is_synced:
            replica.is_joining = False
        elif not self._core.membership.members[peer].is_voter:
            replica.is_joining = True
        if (silent_s if replica.is_joining else lag_s) > self._max_lag_s:
            return ReplicaState.LAGGING
        return ReplicaState.ACTIVE if replica.is_synced else ReplicaState.SYNCING

    # ---------------------------------------------------------------- quorum and warnings

    def _watch_quorum(self, now: float) -> None:
        core = self._core
        if core.leader is not None:
            self._led_at = now
            self._set_quorum(is_there=True, now=now)
        elif self._has_quorum:
            is_late = now - self._led_at > LEADERLESS_TIMEOUTS * self._timeout_s
            if is_late or len(self._reachable()) < core.membership.quorum:
                self._set_quorum(is_there=False, now=now)

    def _reachable(self) -> Sequence[int]:
        core = self._core
        voters = core.membership.voters
        return [v for v in voters if v == core.id or self._host.is_connected(v)]

    def _set_quorum(self, *, is_there: bool, now: float) -> None:
        before, self._has_quorum = self._has_quorum, is_there
        core = self._core
        if before and not is_there:
            connected = tuple(self._reachable())
            needed = core.membership.quorum
            self._host.emit(QuorumLost(reporter=core.id, connected=connected, needed=needed))
            self._lost_at = now
        elif before is False and is_there:
            assert core.leader is not None
            lasted_ms = 1000 * (now - self._lost_at)
            event = QuorumRestored(reporter=core.id, leader=core.leader, duration_ms=lasted_ms)
            self._host.emit(event)

    def _warn(self, row: ReplicaRow, now: float) -> None:
        """Warn once of a replica that is too far behind, and again only after it has recovered."""
        if STATES[row.state] is ReplicaState.SYNCING:
            return
        replica, lag_s = self._replica(row.node_id, now), row.lag_ms / 1000
        if lag_s > self._max_lag_s:
            replica.calm_since = None
            if not replica.is_warned:
                replica.is_warned = True
                event = ReplicationLagWarning(
                    reporter=self._core.id, node_id=row.node_id, lag_ms=row.lag_ms
                )
                self._host.emit(event)
        elif lag_s > self._max_lag_s / 2:
            replica.calm_since = None
        elif replica.calm_since is None:
            replica.calm_since = now
        elif now - replica.calm_since >= min(self._max_lag_s, REARM_S_MAX):
            replica.is_warned = False
