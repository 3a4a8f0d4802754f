"""Cores to drive by hand: one alone, or several over a perfect network (`Net`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from raftha.core import (
    AppendReply,
    CoreConfig,
    Heartbeat,
    Message,
    Raft,
    RaftLog,
    Ready,
    Role,
    VoteReply,
)
from raftha.entry import LOG_START, Entry, EntryKind, HardState, LogPosition, make_entry
from raftha.membership import Membership

ELECTION_TICKS = 10
M = TypeVar("M")


def chain(*terms: int, after: LogPosition = LOG_START) -> list[Entry]:
    """Entries of these terms, one after the other."""
    entries: list[Entry] = []
    for term in terms:
        entries.append(make_entry(after, term, 0, EntryKind.NOOP, b"", 0))
        after = entries[-1].position
    return entries


def core(
    node_id: int = 1,
    *terms: int,
    voters: int = 3,
    hard_state: HardState | None = None,
    window_bytes_max: int = 1 << 20,
    in_flight_messages_max: int = 256,
    append_bytes_max: int = 4 << 20,
    healing_generation: int = 0,
    lease_ms: int = 0,
    promised_ms: int = 0,
    clock_drift_max: float = 0.0,
    clock_ns: Callable[[], int] = lambda: 0,
) -> Raft:
    """A core that has just started, with a log of entries of these terms on its disk."""
    config = CoreConfig(
        node_id=node_id,
        heartbeat_ticks=2,
        election_ticks=ELECTION_TICKS,
        window_bytes_max=window_bytes_max,
        in_flight_messages_max=in_flight_messages_max,
        append_bytes_max=append_bytes_max,
        lease_ms=lease_ms,
        promised_ms=max(promised_ms, lease_ms),
        clock_drift_max=clock_drift_max,
    )
    membership = Membership.first({i: f"127.0.0.1:{7100 + i}" for i in range(1, voters + 1)})
    log = RaftLog(1, LOG_START, chain(*terms), window_bytes_max, membership)
    last_term = terms[-1] if terms else 0
    hard_state = hard_state or HardState(last_term, 0, 0)
    return Raft(config, hard_state, log, lambda below: 0, healing_generation, clock_ns)


def has_work(ready: Ready) -> bool:
    """Whether there is anything to do in a `Ready`."""
    return any(getattr(ready, name) for name in Ready.__slots__)


def peers_of(raft: Raft) -> list[int]:
    """The other voters."""
    return [voter for voter in raft.membership.voters if voter != raft.id]


def finish(raft: Raft, ready: Ready) -> list[Message]:
    """Do everything that a `Ready` asks for, disk writes at once; return what was sent."""
    sent = list(ready.messages)
    while ready.write is not None:
        sent += ready.write.messages
        raft.advance(ready.write)
        ready = raft.ready()
        sent += ready.messages
    return sent


def settle(raft: Raft) -> list[Message]:
    """Let a core do all its work; return what was sent."""
    return finish(raft, raft.ready())


def step(raft: Raft, message: Message) -> list[Message]:
    """Give a core a message; return what it sends in response."""
    raft.step(message)
    return settle(raft)


def only(kind: type[M], messages: list[Message]) -> list[M]:
    """The messages of one kind."""
    return [m for m in messages if isinstance(m, kind)]


def become_candidate(raft: Raft) -> None:
    """Make a core win its pre-vote; its term and vote are durable."""
    for _ in range(2 * ELECTION_TICKS):
        if raft.role is Role.FOLLOWER:
            raft.tick()
    term = raft.term + 1
    raft.step(VoteReply(raft.id, peers_of(raft)[0], term, True, True))
    raft.step(VoteReply(raft.id, peers_of(raft)[-1], term, True, True))
    settle(raft)
    assert raft.role is Role.CANDIDATE


def become_leader(raft: Raft) -> list[Message]:
    """Make a core win its election; return what it sends as leader, with its no-op durable."""
    become_candidate(raft)
    for peer in peers_of(raft)[: raft.membership.quorum - 1]:
        raft.step(VoteReply(raft.id, peer, raft.term, True, False))
    assert raft.role is Role.LEADER
    return settle(raft)


def follow(raft: Raft, leader: int = 2, term: int = 1) -> None:
    """Make a core a follower of `leader`."""
    step(raft, Heartbeat(raft.id, leader, term, 0, 0))
    assert raft.leader == leader


def acknowledge(raft: Raft, peer: int, index: int | None = None) -> list[Message]:
    """A follower acknowledges everything up to `index`."""
    last = raft.log.last_index if index is None else index
    return step(raft, AppendReply(raft.id, peer, raft.term, True, last, 0, 0))


class Net:
    """Cores that get every message at once, and whose disks take no time."""

    def __init__(self, *cores: Raft) -> None:
        self.cores = {raft.id: raft for raft in cores}
        self.cut_off: set[int] = set()
        self.applied: dict[int, list[Entry]] = {raft.id: [] for raft in cores}
        self.reads: dict[int, list[tuple[int, int]]] = {raft.id: [] for raft in cores}

    def run(self) -> None:
        """Deliver messages until there are none."""
        is_busy = True
        while is_busy:
            is_busy = False
            for raft in self.cores.values():
                for message in self._take(raft):
                    is_busy = True
                    if not {message.to, message.sender} & self.cut_off:
                        self.cores[message.to].step(message)

    def _take(self, raft: Raft) -> list[Message]:
        sent: list[Message] = []
        while True:
            had_ready = raft.has_ready
            ready = raft.ready()
            assert had_ready or not has_work(ready), "`has_ready` knows of all work"
            sent += ready.messages
            self.applied[raft.id] += ready.committed
            self.reads[raft.id] += ready.read_states
            if ready.write is None:
                return sent
            sent += ready.write.messages
            raft.advance(ready.write)

    def elect(self, node_id: int) -> Raft:
        """Let this core time out first."""
        raft = self.cores[node_id]
        for _ in range(3 * ELECTION_TICKS):
            if raft.is_leader:
                break
            raft.tick()
            self.run()
        assert raft.is_leader
        return raft
