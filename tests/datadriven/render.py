"""One line for each thing that happens, for readers who know Raft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from raftha.core import (
    Append,
    AppendReply,
    DurableIndexesReply,
    DurableIndexesRequest,
    Healed,
    Heartbeat,
    HeartbeatReply,
    Message,
    Raft,
    ReadReply,
    ReadRequest,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    Write,
)
from raftha.entry import Entry, EntryKind
from raftha.events import (
    CatchUpGivenUp,
    HaEvent,
    HealingEnded,
    LeaderElected,
    LeaderLost,
    MembershipChanged,
    Removed,
    ReplicaBehindLog,
    ReplicaHealed,
    ReplicaHealing,
    ReplicaLostLog,
    RoleChanged,
    SecondLeader,
)
from raftha.membership import Membership


def entry_text(entry: Entry) -> str:
    """Return "index/term content"."""
    payload = bytes(entry.payload)
    match entry.kind:
        case EntryKind.NOOP:
            content = "noop"
        case EntryKind.MEMBERSHIP:
            content = membership_text(Membership.decode(payload))
        case _:
            content = payload.decode()
    return f"{entry.index}/{entry.term} {content}".rstrip()


def membership_text(membership: Membership) -> str:
    """Return "members 1 2 (3) -4": 3 is a learner, 4 was removed."""
    members = sorted(membership.members.items())
    ids = [str(node) if member.is_voter else f"({node})" for node, member in members]
    return " ".join(["members", *ids, *(f"-{node}" for node in sorted(membership.removed))])


def entries_text(entries: Sequence[Entry]) -> str:
    return f"[{', '.join(map(entry_text, entries))}]"


def message_type(message: Message) -> str:
    """Return the message's type; pre-votes have names of their own."""
    name = type(message).__name__
    return f"Pre{name}" if isinstance(message, VoteRequest | VoteReply) and message.pre else name


def message_text(message: Message) -> str:
    """Return "from->to Type term=... details"."""
    head = f"{message.sender}->{message.to} {message_type(message)} term={message.term}"
    return f"{head} {_details(message)}".rstrip()


def _details(message: Message) -> str:
    text = ""
    match message:
        case VoteRequest():
            text = f"last={message.last_index}/{message.last_term}" + " transfer" * message.transfer
        case VoteReply():
            text = "granted" if message.granted else "refused"
        case Append():
            text = f"prev={message.prev_index}/{message.prev_term} commit={message.commit}"
            text += f" entries={entries_text(message.entries)}"
        case AppendReply() if message.ok:
            text = f"ok={message.index}"
        case AppendReply():
            text = f"rejected={message.index} hint={message.hint_index}/{message.hint_term}"
        case Heartbeat():
            text = f"commit={message.commit} round={message.read_round}"
        case HeartbeatReply():
            text = f"round={message.read_round}"
        case ReadRequest():
            text = f"id={message.read_id}"
        case ReadReply():
            text = f"id={message.read_id} index={message.index}"
        case DurableIndexesRequest():
            text = f"index={message.index}"
        case DurableIndexesReply():
            text = f"commit={message.commit} behind={list(message.behind)}"
        case SnapshotOffer():
            text = f"snapshot={message.index}/{message.index_term}"
        case TimeoutNow() | Healed():
            pass
        case _:
            assert_never(message)
    generation = getattr(message, "healing_generation", 0)
    return f"{text} generation={generation}".lstrip() if generation else text


def write_text(write: Write) -> str:
    """Return what a write makes durable."""
    parts = []
    if write.hard_state is not None:
        state = write.hard_state
        parts.append(f"term={state.term} vote={state.vote} commit={state.commit}")
    if write.entries:
        parts.append(f"entries={entries_text(write.entries)}")
    return " ".join(parts)


def event_text(event: HaEvent) -> str | None:
    """Return what the node noticed; None if another line shows it already."""
    match event:
        case RoleChanged():
            return f"{event.reporter} became {event.role} in term {event.term}"
        case LeaderElected() if event.leader == event.reporter:
            return None
        case LeaderElected():
            return f"{event.reporter} follows {event.leader} in term {event.term}"
        case LeaderLost():
            return f"{event.reporter} lost leader {event.leader}: {event.reason}"
        case ReplicaBehindLog():
            needs, first = event.needs_index, event.first_index
            refusal = f"{event.reporter} can't help {event.node_id}"
            return f"{refusal}: it needs {needs}, the log has {first}"
        case MembershipChanged():
            learners = f", learners {list(event.learners)}" if event.learners else ""
            return f"{event.reporter} has voters {list(event.voters)}{learners} as of {event.index}"
        case Removed():
            return f"{event.reporter} was removed"
        case _:
            return _member_text(event)


def _member_text(event: HaEvent) -> str:
    """Return what the node noticed of another one, or of its own healing."""
    match event:
        case CatchUpGivenUp():
            return (
                f"{event.reporter} gives up on learner {event.node_id} after {event.rounds} rounds"
            )
        case SecondLeader():
            return f"{event.reporter} hears {event.other} as a second leader of term {event.term}"
        case HealingEnded():
            return f"{event.reporter} has healed"
        case ReplicaLostLog():
            return f"{event.reporter} learns that {event.node_id} lost {event.acknowledged}"
        case ReplicaHealing():
            return f"{event.reporter} learns that {event.node_id} heals"
        case ReplicaHealed():
            return f"{event.reporter} learns that {event.node_id} has healed"
        case _:
            raise AssertionError(f"an event of the core that has no line: {event}")


def log_text(raft: Raft) -> str:
    """Return the entries in memory, and the pointers."""
    log = raft.log
    held = log.between(log.anchor.index, log.last_index)
    before = f"after {log.anchor.index}/{log.anchor.term}: " if log.anchor.index else ""
    return f"{before}{entries_text(held)} {_pointers(raft)}"


def status_lines(raft: Raft) -> list[str]:
    """Return what a node knows of itself and, if it leads, of the others."""
    leader = raft.leader or "none"
    state = f"{raft.role} term={raft.term} vote={raft.vote} leader={leader}"
    lines = [f"{raft.id} {state} last={raft.log.last_index}/{raft.log.last_term} {_pointers(raft)}"]
    for peer, progress in sorted(raft.progress.items()):
        line = f"  {peer} {progress.mode.value} match={progress.match} next={progress.next}"
        line += " paused" * progress.is_paused + " silent" * (not progress.is_active)
        line += " learner" * (peer not in raft.membership.voters)
        line += " healing" * progress.is_healing
        line += " given-up" * raft.has_given_up(peer)
        lines.append(line)
    return lines


def _pointers(raft: Raft) -> str:
    log = raft.log
    return f"persisted={log.persisted} commit={log.commit} applied={log.applied}"
