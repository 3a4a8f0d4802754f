"""Health checks: of the other members, and of this node's own disk.

Theory of operation. A check evaluates the traffic since the last check, twice per election timeout;
healthy members cost no extra messages. A member fails a check if it owes this node a message and is
silent. To a leader, every member owes one; to a follower, its leader does; and so does any member
that was asked for its health. This node's own disk fails a check if a write of the log takes too
long.

Every `health_check_interval_sec`, all members are asked for their health, and a disk that had
nothing to write is tested by sealing the log. So idle members and idle disks are checked too. A
member that failed its last check, or reported a slow disk, is asked at each check, so that its
state is known soon either way; while this node's own disk is not healthy, all members are. The log
is also sealed after `SEAL_AFTER_S` without a write: before that, damage to its last write would
look like a torn write.

    healthy    -> suspect    one failed check
    suspect    -> unhealthy  CHECKS_UNTIL_UNHEALTHY in a row; one good check: healthy again
    unhealthy  -> healthy    CHECKS_UNTIL_RECOVERED good ones in a row

The connection to a member that owes a message for `HANG_UP_S` is closed, as if the member were
unreachable: if its process is stopped, its kernel still acknowledges everything.

Gray failure: a leader that is alive but cannot commit. If its own disk is unhealthy and other
voters are healthy with a healthy disk, the leader hands over to one of them. If it has applied
nothing for `max_replication_lag_ms` although entries wait and a majority is healthy, it hands over
too. If that fails, because entries don't reach the successor, it steps down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from statistics import median
from typing import Protocol

from raftha.config import HaConfig
from raftha.core import Raft
from raftha.core.progress import Mode
from raftha.events import HaEvent, HealthCheckFailed, HealthRecovered
from raftha.node.messages import HealthMessage, HealthReply, HealthRequest
from raftha.types import Health

CHECKS_UNTIL_UNHEALTHY = 3
CHECKS_UNTIL_RECOVERED = 2
CHECKS_PER_TIMEOUT = 2
DURATIONS_MAX = 1000
SEAL_AFTER_S = 1.0
HANG_UP_S = 10.0


class HealthHost(Protocol):
    """The part of the host that health checks use."""

    def send(self, message: HealthMessage) -> None: ...
    def emit(self, event: HaEvent) -> None: ...
    def hang_up(self, peer: int) -> None:
        """Close the connection to a silent member, if there is one."""
        ...

    def seal_log(self, commit: int) -> None:
        """Seal the idle log, which writes to the disk, then call `write_ended`."""
        ...


class Record:
    """The results of the checks of one member, or of this node's own disk."""

    __slots__ = ("failures", "health", "successes")

    def __init__(self) -> None:
        self.failures = 0
        self.successes = 0
        self.health = Health.HEALTHY

    def passed(self) -> bool:
        """Count a passed check; return True if the member has recovered with it."""
        self.failures = 0
        self.successes += 1
        if self.health is Health.UNHEALTHY and self.successes < CHECKS_UNTIL_RECOVERED:
            return False
        has_recovered = self.health is Health.UNHEALTHY
        self.health = Health.HEALTHY
        return has_recovered

    def failed(self) -> None:
        """Count a failed check."""
        self.successes = 0
        self.failures += 1
        if self.health is not Health.UNHEALTHY:
            is_sure = self.failures >= CHECKS_UNTIL_UNHEALTHY
            self.health = Health.UNHEALTHY if is_sure else Health.SUSPECT


class OwnDisk:
    """How long writes and seals take on this node's disk, one after the other."""

    def __init__(self, slow_s: float, now: float) -> None:
        self._slow_s = slow_s
        self._begun: deque[tuple[float, bool]] = deque()
        self._durations: list[float] = []
        self._unsealed_since: float | None = now
        self.has_worked = False

    def begin(self, now: float, *, is_seal: bool = False) -> None:
        self._begun.append((now, is_seal))

    def end(self, now: float) -> float:
        begun_at, is_seal = self._begun.popleft()
        if len(self._durations) < DURATIONS_MAX:
            self._durations.append(now - begun_at)
        self._unsealed_since = None if is_seal else now
        self.has_worked = True
        return now - begun_at

    @property
    def is_busy(self) -> bool:
        return bool(self._begun)

    def is_unsealed(self, since: float) -> bool:
        """True if the last write is not sealed and none has ended after `since`."""
        return self._unsealed_since is not None and self._unsealed_since <= since

    def diagnose(self, now: float) -> str | None:
        """Return what went wrong since the last call: "" if nothing, None if the disk was idle."""
        durations, self._durations = self._durations, []
        if self._begun and now - self._begun[0][0] > self._slow_s:
            return f"a write is under way for {now - self._begun[0][0]:.2f} s"
        if not durations:
            return None
        typical = median(durations)
        return f"writes take {typical:.2f} s" if typical > self._slow_s else ""


class HealthMonitor:
    """The checks of one node. All calls come from the node's thread."""

    def __init__(
        self,
        config: HaConfig,
        core: Raft,
        host: HealthHost,
        hand_over: Callable[[Collection[int]], None],
        applied: Callable[[], int],
        now: float,
    ) -> None:
        """`hand_over` makes one of the given nodes the leader, if it can.

        `applied` returns the index that this node has applied.
        """
        self._core = core
        self._host = host
        self._hand_over = hand_over
        self._applied = applied
        self._timeout_s = config.election_timeout_ms / 1000
        self._period_s = self._timeout_s / CHECKS_PER_TIMEOUT
        self._interval_s = config.health_check_interval_sec
        self._stall_limit_s = config.max_replication_lag_ms / 1000
        self._disk = OwnDisk(self._period_s, now)
        self._own_record = Record()
        self._peers: dict[int, Record] = {}
        self._last_contact: dict[int, float] = {}
        self._asked: dict[int, float] = {}
        self._sick_disks: set[int] = set()
        self._checked_at = now
        self._round_at = now
        self._leading_since = now
        self._moved_at = now
        self._applied_then = 0
        self._gave_up_at: float | None = None

    def health(self, node_id: int) -> Health:
        """Return a member's health; for this node, the health of its disk."""
        record = self._own_record if node_id == self._core.id else self._peers.get(node_id)
        return record.health if record is not None else Health.HEALTHY

    def may_lead(self, node_id: int) -> bool:
        """True if a member and its disk are healthy, as far as this node knows."""
        return self.health(node_id) is Health.HEALTHY and node_id not in self._sick_disks

    @property
    def last_contact(self) -> Mapping[int, float]:
        """The time of each member's last message, or of its first check."""
        return self._last_contact

    # ---------------------------------------------------------------- what is observed

    def record_contact(self, peer: int, now: float) -> None:
        """A message from a member arrived."""
        self._last_contact[peer] = now

    def on_message(self, message: HealthMessage) -> None:
        """A member asks for this node's health, or answers with its own."""
        if isinstance(message, HealthRequest):
            is_well = self._own_record.health is Health.HEALTHY
            self._host.send(
                HealthReply(to=message.sender, sender=self._core.id, is_disk_well=is_well)
            )
        elif message.is_disk_well:
            self._sick_disks.discard(message.sender)
        else:
            self._sick_disks.add(message.sender)

    def on_leader(self, now: float) -> None:
        """A leader is known: the members that owe messages may be others from now on."""
        self._leading_since = self._moved_at = now
        self._gave_up_at = None

    def write_begun(self, now: float) -> None:
        """A write of the log has begun."""
        self._disk.begin(now)

    def write_ended(self, now: float) -> float:
        """A write or seal of the log has ended; return the seconds it took."""
        return self._disk.end(now)

    # ---------------------------------------------------------------- checks

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed: run the checks if they are due."""
        elapsed = now - self._checked_at
        if elapsed < self._period_s:
            return
        self._checked_at = now
        if elapsed > 2 * self._period_s:
            # This node itself was paused, and the messages of that time are still unread.
            self._leading_since = self._moved_at = now
            self._asked.clear()
            return
        is_round = now - self._round_at >= self._interval_s
        self._round_at = now if is_round else self._round_at
        self._record_check(self._core.id, self._own_record, self._disk.diagnose(now), is_round)
        self._check_peers(now, is_round)
        self._ask(now, is_round)
        if self._core.is_leader:
            self._relieve(now)

    def _check_peers(self, now: float, is_round: bool) -> None:
        peers = [peer for peer in self._core.membership.members if peer != self._core.id]
        for gone in self._peers.keys() - set(peers):
            del self._peers[gone]
            self._sick_disks.discard(gone)
        for peer in peers:
            record = self._peers.setdefault(peer, Record())
            self._record_check(peer, record, self._diagnose_peer(peer, now), is_round)
            if self._owing_s(peer, now) > HANG_UP_S:
                self._host.hang_up(peer)

    def _owing_s(self, peer: int, now: float) -> float:
        """Return for how many seconds a member has owed a message."""
        if self._core.is_leader or peer == self._core.leader:
            return now - max(self._last_contact[peer], self._leading_since)
        asked = self._asked.get(peer)
        return now - asked if asked is not None and asked > self._last_contact[peer] else 0.0

    def _diagnose_peer(self, peer: int, now: float) -> str | None:
        contact_at = self._last_contact.setdefault(peer, now)
        asked = self._asked.get(peer)
        silent_s = now - contact_at
        if self._core.is_leader or peer == self._core.leader:
            silent_s = min(silent_s, now - self._leading_since)
        elif asked is None or contact_at >= asked:
            return "" if silent_s <= self._period_s else None
        elif now - asked <= self._timeout_s:
            return None
        return f"no message for {silent_s:.1f} s" if silent_s > self._timeout_s else ""

    def _record_check(
        self, node_id: int, record: Record, wrong: str | None, is_round: bool
    ) -> None:
        if wrong is None:
            return
        if not wrong:
            if record.passed():
                self._host.emit(HealthRecovered(reporter=self._core.id, node_id=node_id))
            return
        record.failed()
        if is_round or record.failures in (1, CHECKS_UNTIL_UNHEALTHY):
            self._host.emit(
                HealthCheckFailed(
                    reporter=self._core.id,
                    node_id=node_id,
                    consecutive_failures=record.failures,
                    health=record.health,
                    reason=wrong,
                )
            )

    def _ask(self, now: float, is_round: bool) -> None:
        """Ask the members whose traffic alone is not enough; seal the log to test the disk."""
        is_well = self._own_record.health is Health.HEALTHY
        for peer, record in self._peers.items():
            is_doubtful = record.health is not Health.HEALTHY or peer in self._sick_disks
            if is_round or not is_well or is_doubtful:
                if self._last_contact[peer] >= self._asked.get(peer, 0.0):
                    self._asked[peer] = now
                self._host.send(HealthRequest(to=peer, sender=self._core.id))
        is_wanted = not is_well or (is_round and not self._disk.has_worked)
        if not self._disk.is_busy and (is_wanted or self._disk.is_unsealed(now - SEAL_AFTER_S)):
            self._disk.begin(now, is_seal=True)
            self._host.seal_log(min(self._core.log.commit, self._core.log.persisted))
        if is_round:
            self._disk.has_worked = False

    # ---------------------------------------------------------------- gray failure

    def _relieve(self, now: float) -> None:
        """Hand over, or else step down, when this leader is alive but cannot commit."""
        voters = [v for v in self._core.membership.voters if v != self._core.id]
        well = [voter for voter in voters if self.may_lead(voter)]
        if well and self._own_record.health is Health.UNHEALTHY:
            self._hand_over(well)
        applied = self._applied()
        if applied != self._applied_then or applied >= self._core.log.last_index:
            self._applied_then, self._moved_at, self._gave_up_at = applied, now, None
        elif now - self._moved_at > self._stall_limit_s:
            level = [voter for voter in well if not self._is_lagging(voter)]
            if len(level) + 1 < self._core.membership.quorum or not level:
                return
            if self._gave_up_at is None:
                self._gave_up_at = now
                self._hand_over(level)
            elif now - self._gave_up_at > 2 * self._timeout_s:
                self._core.resign()

    def _is_lagging(self, peer: int) -> bool:
        """True if a follower needs log from the disk or a snapshot, which takes a while.

        A successor would have to start that transfer from the beginning.
        """
        progress = self._core.progress.get(peer)
        if progress is None:
            return False
        is_out_of_memory = progress.match > 0 and self._core.log.term(progress.match) is None
        return progress.mode in (Mode.FETCH, Mode.SNAPSHOT) or is_out_of_memory
