"""Each assert of core and storage stops a node whose own state is wrong, and names the fault.

A row corrupts one thing, goes on as if nothing had happened, and names the property that this
breaks. Messages and damaged disks never trip an assert: `tests/property/test_messages.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from raftha.core import Append, HeartbeatReply, Raft, RaftLog, Role, Write
from raftha.core.lease import Lease
from raftha.core.progress import Mode, Progress
from raftha.core.reads import Read, ReadRounds
from raftha.entry import LOG_START, EntryKind, LogPosition, make_entry
from raftha.membership import Membership
from tests.support.asserts import Row, check, expect
from tests.support.core import (
    acknowledge,
    become_candidate,
    become_leader,
    chain,
    core,
    follow,
    settle,
    step,
)

# ---------------------------------------------------------------- the log in the core


def log_with(**pointers: int) -> RaftLog:
    """Five entries of terms 1 and 2, three of them committed, two applied."""
    log = core(1, 1, 1, 1, 2, 2).log
    log.commit_to(3)
    log.mark_applied(2)
    for name, value in pointers.items():
        setattr(log, name, value)
    return log


def replace_an_equal_entry() -> None:
    log = log_with()
    log._extend(tuple(log.window[3:]))


def membership_of_another_entry() -> None:
    log = log_with()
    log._memberships.append((4, log.membership))
    log.check()


def append_after(change: Callable[[LogPosition], LogPosition]) -> Callable[[], None]:
    """Append an entry of term 2 that follows another position than the last."""
    log = log_with()
    log.append(make_entry(log.last, 2, 9, EntryKind.NOOP, b"", 9))
    entry = make_entry(change(log.last), 2, 0, EntryKind.NOOP, b"", 0)
    return lambda: log.append(entry)


LOG: dict[str, Row] = {
    "commit back": (lambda: log_with().commit_to(2), "commit never goes back"),
    "commit ahead": (lambda: log_with().commit_to(6), "committed entries are in the log"),
    "committed replaced": (
        lambda: log_with()._extend(tuple(chain(1, 1, 2)[2:])),
        "committed entries are never replaced (R6)",
    ),
    "equal replaced": (
        replace_an_equal_entry,
        "entries are replaced only where a term differs (R6)",
    ),
    "gap": (
        lambda: log_with()._extend(tuple(chain(*[1] * 7)[6:])),
        "entries are added without a gap",
    ),
    "append with a gap": (
        append_after(lambda last: last._replace(index=7)),
        "a leader appends after its last entry",
    ),
    "time back": (append_after(lambda last: last._replace(time_us=0)), "log time never goes back"),
    "sequence back": (
        append_after(lambda last: last._replace(last_sequence=0)),
        "command numbers never go back",
    ),
    "term back": (
        lambda: log_with().append(chain(*[1] * 6)[-1]),
        "terms never decrease along the log",
    ),
    "applied back": (lambda: log_with().mark_applied(1), "entries are applied in order"),
    "uncommitted applied": (
        lambda: log_with().mark_applied(4),
        "applied entries are committed (R5)",
    ),
    "undurable applied": (
        lambda: log_with(persisted=2).mark_applied(3),
        "applied entries are durable here (R5)",
    ),
    "commit behind applied": (
        lambda: log_with(commit=1).check(),
        "applied entries are committed (R5)",
    ),
    "persisted behind applied": (
        lambda: log_with(persisted=1).check(),
        "applied entries are durable here (R5)",
    ),
    "persisted ahead of written": (
        lambda: log_with(written=4).check(),
        "durable entries were handed out for writing",
    ),
    "written ahead of the log": (
        lambda: log_with(written=6).check(),
        "entries handed out for writing are in the log",
    ),
    "window cut too far": (
        lambda: log_with(applied=-1).check(),
        "memory has all entries that aren't applied",
    ),
    "no membership there": (
        membership_of_another_entry,
        "the membership in force is an entry of the log",
    ),
    "read behind the window": (
        lambda: log_with().between(3, 6),
        "the entries exist",
    ),
    "a log with a gap": (
        lambda: RaftLog(1, LOG_START, chain(1, 1)[1:], 1, Membership.first({1: "127.0.0.1:1"})),
        "the log on disk has no gap",
    ),
}


@check(LOG)
def test_the_log_in_memory(act: Callable[[], object], says: str) -> None:
    expect(act, says)


# ---------------------------------------------------------------- terms, votes, roles


def candidate() -> Raft:
    raft = core()
    become_candidate(raft)
    return raft


def leader() -> Raft:
    raft = core()
    become_leader(raft)
    acknowledge(raft, 2)
    return raft


def cut_leader() -> Raft:
    raft = leader()
    raft.log.window.pop()
    return raft


def campaign_with(**attributes: object) -> None:
    raft = core()
    for name, value in attributes.items():
        setattr(raft._election, name, value)
    raft._election._campaign(pre=True)


def campaign_while_healing() -> None:
    core(healing_generation=1)._election._campaign(pre=True)


def lead_without_votes() -> None:
    raft = candidate()
    raft._election._votes = {1: True}
    raft._become_leader()


def lead_before_durable() -> None:
    raft = candidate()
    raft._election._vote_for(1)
    raft._election.term += 1
    raft._become_leader()


def vote_again() -> None:
    raft = core()
    raft._election._vote_for(2)
    raft._election._vote_for(3)


def write_another_vote() -> None:
    raft = candidate()
    raft._election.vote = 2
    raft.ready()


def write_an_earlier_term() -> None:
    raft = candidate()
    raft._election.term = 0
    raft.ready()


def follow_two() -> None:
    raft = core()
    follow(raft)
    raft._election._set_leader(3)


def lead_and_follow() -> None:
    raft = core()
    raft._election.role = Role.LEADER
    raft._election._set_leader(2)


ELECTION: dict[str, Row] = {
    "term back": (lambda: candidate()._become_follower(0, None), "a term never goes back"),
    "second vote": (vote_again, "a node votes once a term (R1)"),
    "second vote on disk": (write_another_vote, "a node votes once a term (R1)"),
    "term back on disk": (write_an_earlier_term, "a term never goes back"),
    "leader campaigns": (
        lambda: leader()._election._campaign(pre=True),
        "a leader doesn't campaign against itself",
    ),
    "removed campaigns": (
        lambda: campaign_with(is_removed=True),
        "a removed node doesn't campaign",
    ),
    "healing campaigns": (campaign_while_healing, "a node that heals doesn't campaign"),
    "no candidate": (lambda: core()._become_leader(), "only a candidate wins an election"),
    "own vote not durable": (
        lead_before_durable,
        "a candidate's own vote is durable before it counts (R1)",
    ),
    "too few votes": (lead_without_votes, "a leader has the votes of a quorum of voters"),
    "two leaders": (follow_two, "a term has one leader"),
    "leads and follows": (lead_and_follow, "a node leads only a term that it has won"),
}


@check(ELECTION)
def test_terms_and_votes(act: Callable[[], object], says: str) -> None:
    expect(act, says)


# ---------------------------------------------------------------- a leader


def forget_the_leadership() -> None:
    raft = leader()
    raft._leadership = None
    raft.ready()


def lease_of_a_follower() -> None:
    raft = core()
    raft.leases.current = Lease(1)
    raft.ready()


def lease_in_a_transfer() -> None:
    raft = leader()
    assert raft._leadership is not None
    raft.leases.current = Lease(1)
    raft._leadership.transfer_target = 2
    raft.ready()


def lease_without_commit() -> None:
    raft = core()
    become_leader(raft)
    raft.leases.current = Lease(1)
    raft.ready()


def take_entries_as_leader() -> None:
    raft = leader()
    raft._election.role, raft._election.leader = Role.FOLLOWER, 2
    raft._on_append(Append(1, 2, raft.term, 0, 0, 0, 0, ()))


def commit_by(matches: int, *, begins_at: int = 1) -> None:
    """Commit a third entry, although node 2 matches only up to `matches`."""
    raft = leader()
    leadership = raft._leadership
    assert leadership is not None
    raft.propose(b"", 0, 0)
    settle(raft)
    raft.progress[2].match = matches
    leadership._begins_at = begins_at
    leadership._commit = lambda _: raft.log.commit_to(2)  # type: ignore[method-assign, assignment]
    leadership.advance_commit()


def follower_ahead() -> None:
    raft = leader()
    raft.progress[2].match = 9
    raft.advance(next_write(raft))


def next_write(raft: Raft) -> Write:
    raft.propose(b"", 0, 0)
    write = raft.ready().write
    assert write is not None
    return write


def send_beyond_the_log() -> None:
    raft = leader()
    raft.progress[3].next = 9
    raft.connected(3)


def overlapping_changes() -> None:
    raft = leader()
    assert raft._leadership is not None
    wider = raft.membership.with_learner(4, "127.0.0.1:7104", "primary")
    raft.change_membership(wider)
    raft._leadership.append(EntryKind.MEMBERSHIP, wider.encode(), 0, 0)


def change_before_commit() -> None:
    raft = core()
    become_leader(raft)
    assert raft._leadership is not None
    raft._leadership.append(EntryKind.MEMBERSHIP, raft.membership.encode(), 0, 0)


def change_of_two() -> None:
    raft = leader()
    wider = raft.membership.with_learner(4, "127.0.0.1:7104", "primary")
    raft.change_membership(wider.with_learner(5, "127.0.0.1:7105", "primary"))


def change_without_the_leader() -> None:
    raft = leader()
    raft.change_membership(raft.membership.without(1))


def healing_back() -> None:
    raft = leader()
    raft.progress[2].healing_generation = 2
    step(raft, HeartbeatReply(1, 2, raft.term, 0))


LEADER: dict[str, Row] = {
    "log cut": (
        lambda: cut_leader().propose(b"", 0, 0),
        "only this leader changes its log, by appending",
    ),
    "leadership forgotten": (forget_the_leadership, "a leader has a leadership, no other node has"),
    "takes entries": (take_entries_as_leader, "a leader only adds to its log"),
    "lease of a follower": (lease_of_a_follower, "only a leader has a lease"),
    "lease in a transfer": (lease_in_a_transfer, "no lease in a transfer (L4)"),
    "lease too early": (
        lease_without_commit,
        "no lease before an entry of this term is committed (L4)",
    ),
    "no quorum": (
        lambda: commit_by(1),
        "committed entries are on the disks of a quorum (R3)",
    ),
    "older term": (
        lambda: commit_by(2, begins_at=3),
        "only entries of this term are committed by counting (R4)",
    ),
    "more than the leader": (follower_ahead, "no disk has more than the leader's log"),
    "next beyond the log": (send_beyond_the_log, "the next entry to send is in the log"),
    "overlapping changes": (overlapping_changes, "one change of membership at a time"),
    "change too early": (
        change_before_commit,
        "a change of membership waits for an entry of this term",
    ),
    "two nodes at once": (change_of_two, "memberships differ by one node"),
    "leader goes": (change_without_the_leader, "a leader hands over before it leaves"),
    "healing generation back": (healing_back, "a healing generation never goes back"),
}


@check(LEADER)
def test_a_leader(act: Callable[[], object], says: str) -> None:
    expect(act, says)


# ---------------------------------------------------------------- followers, reads, writes


def progress(mode: Mode, match: int = 3) -> Progress:
    made = Progress(match + 1, 256, 1 << 20)
    made.mode, made.match = mode, match
    return made


def begun_round() -> ReadRounds:
    rounds = ReadRounds()
    rounds.add(Read(1, 1))
    rounds.begin(5)
    return rounds


def round_of(commit: int) -> None:
    rounds = begun_round()
    rounds.finish()
    rounds.add(Read(1, 2))
    rounds.begin(commit)


def second_round() -> None:
    rounds = begun_round()
    rounds.add(Read(1, 2))
    rounds.begin(5)


def send_before_durable() -> None:
    raft = core(1, 1, 1)
    follow(raft)
    raft.log.persisted = 1
    raft.step(Append(1, 2, 1, 2, 1, 0, 0, ()))
    raft.ready()


def write_twice() -> None:
    raft = leader()
    write = next_write(raft)
    raft.advance(write)
    raft.advance(write)


PARTS: dict[str, Row] = {
    "sent in PROBE": (
        lambda: progress(Mode.PROBE).sent(4, 1),
        "appends go out back to back only in REPLICATE",
    ),
    "sent twice": (
        lambda: progress(Mode.REPLICATE).sent(3, 1),
        "an append begins where the last one ended",
    ),
    "probed in REPLICATE": (
        lambda: progress(Mode.REPLICATE).probed(1, 4),
        "probes go out only in PROBE",
    ),
    "probed too early": (
        lambda: progress(Mode.PROBE).probed(1, 2),
        "a probe asks about the entry before the next",
    ),
    "lost in the past": (
        lambda: progress(Mode.PROBE).lost(0),
        "a healing generation never goes back",
    ),
    "round without reads": (
        lambda: ReadRounds().begin(1),
        "a round has reads to answer",
    ),
    "round in a round": (second_round, "one round at a time"),
    "read index back": (lambda: round_of(4), "a read index never goes back"),
    "no round": (lambda: ReadRounds().finish(), "a round ends after it began"),
    "sent too early": (send_before_durable, "without a write under way, the whole log is durable"),
    "written twice": (write_twice, "writes complete in the order they were taken (O3)"),
    "lease without a leader": (
        lambda: core(lease_ms=10).leases.renew([], 1),
        "a quorum is some of the voters",
    ),
    "healed twice": (lambda: core().healed(1), "only a node that heals has healed"),
    "healed too far": (
        lambda: core(healing_generation=1).healed(4),
        "healing ends in the next generation",
    ),
}


@check(PARTS)
def test_parts_of_the_core(act: Callable[[], object], says: str) -> None:
    expect(act, says)
