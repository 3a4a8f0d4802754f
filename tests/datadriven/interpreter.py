"""Reads a transcript's commands, carries them out, and writes the resulting transcript.

Theory of operation. `replay` goes through the text block by block. Each command is a method of
`Interpreter`, named like it; the arguments are words, of which `name=value` and flags may stand
anywhere. `cluster.py` implements the commands; `__init__.py` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raftha.core import CoreConfig, Role, VoteRequest
from raftha.core.messages import Message
from raftha.entry import HardState
from raftha.errors import RafthaError
from raftha.membership import Membership
from tests.datadriven import render
from tests.datadriven.cluster import Cluster, Member, make_disk
from tests.datadriven.render import membership_text

_DASHES = "----"
_CAMPAIGN_TICKS_MAX = 1000
_SETTINGS = {
    "election": "election_ticks",
    "heartbeat": "heartbeat_ticks",
    "append": "append_bytes_max",
    "window": "window_bytes_max",
    "in-flight": "in_flight_messages_max",
    "in-flight-bytes": "in_flight_bytes_max",
    "catch-up-rounds": "catch_up_rounds_max",
}


@dataclass(slots=True)
class Args:
    """A command's words: plain ones in order, and `name=value`."""

    words: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)

    def flag(self, name: str) -> bool:
        """Take a word that may stand anywhere; return True if it was there."""
        found = name in self.words
        if found:
            self.words.remove(name)
        return found

    def numbers(self) -> list[int]:
        """Take all words, which are numbers."""
        words, self.words = self.words, []
        return [int(word) for word in words]

    def number(self) -> int:
        return int(self.words.pop(0))

    def option(self, name: str, default: str) -> str:
        return self.options.pop(name, default)

    def terms(self) -> list[int]:
        text = self.option("log", "")
        return [int(term) for term in text.split(",")] if text else []


def replay(text: str) -> str:
    """Carry out a transcript's commands; return it with what they put out now."""
    interpreter = Interpreter()
    result: list[str] = []
    commands: list[str] = []
    is_output = False
    for number, line in enumerate(text.splitlines(), 1):
        if is_output:
            if not line:
                is_output = False
                result.append("")
            continue
        result.append(line)
        if line == _DASHES:
            result += interpreter.run(commands, number)
            commands = []
            is_output = True
        elif line and not line.startswith("#"):
            commands.append(line)
    assert not commands, f"commands without {_DASHES} at the end"
    return "\n".join(result) + "\n"


class Interpreter:
    """One cluster, and the commands that can be given to it."""

    def __init__(self) -> None:
        self._cluster = Cluster([])
        self._settings: dict[str, Any] = {}
        self._first = Membership({})

    def run(self, commands: list[str], line_number: int) -> list[str]:
        """Carry out a block's commands; return what they put out."""
        for command in commands:
            name, *words = command.split()
            method = getattr(self, "do_" + name.replace("-", "_"), None)
            assert method is not None, f"line {line_number}: no such command: {name}"
            args = Args([w for w in words if "=" not in w])
            args.options = dict(w.split("=", 1) for w in words if "=" in w)
            self._cluster.shows_messages = not args.flag("quiet")
            method(args)
            left = [*args.words, *args.options]
            assert not left, f"line {line_number}: {name} doesn't know {left}"
        lines = self._cluster.lines or ["ok"]
        self._cluster.lines = []
        return lines

    # ---------------------------------------------------------------- nodes

    def do_add_nodes(self, args: Args) -> None:
        self._cluster = Cluster(self._cluster.lines)
        count, terms = args.number(), args.terms()
        voters = tuple(range(1, count + 1))
        chances = [int(value) for value in args.option("random", "0").split(",")]
        ticks = {"election_ticks": 10, "heartbeat_ticks": 2}
        settings = {_SETTINGS[name]: int(args.options.pop(name)) for name in list(args.options)}
        self._settings = ticks | settings
        self._first = Membership.first({node: _address(node) for node in voters})
        for node in voters:
            self._add_member(node, terms, chances[(node - 1) % len(chances)])

    def do_join(self, args: Args) -> None:
        self._add_member(args.number(), [], 0)

    def _add_member(self, node: int, terms: list[int], chance: int) -> None:
        config = CoreConfig(node_id=node, **self._settings)
        disk = make_disk(terms, HardState(terms[-1] if terms else 0, 0, 0))
        self._cluster.members[node] = member = Member(config, chance, disk, self._first)
        member.start()

    def do_disk(self, args: Args) -> None:
        member, terms = self._member(args), args.terms()
        term = int(args.option("term", str(terms[-1] if terms else 0)))
        vote, commit = int(args.option("vote", "0")), int(args.option("commit", "0"))
        member.crash()
        member.disk = make_disk(terms, HardState(term, vote, commit))
        self._start(member)

    def do_crash(self, args: Args) -> None:
        member = self._member(args)
        if member.pending is not None:
            self._say(f"{member.id} crashes, losing {render.write_text(member.pending)}")
        member.crash()

    def do_restart(self, args: Args) -> None:
        self._start(self._member(args))

    def _start(self, member: Member) -> None:
        assert not member.is_up, f"node {member.id} is up"
        member.start()
        core = member.core
        self._say(f"{member.id} starts term={core.term} vote={core.vote} {render.log_text(core)}")
        self._cluster.turn(member)

    def do_hold_writes(self, args: Args) -> None:
        for node in args.numbers():
            self._cluster.members[node].holds_writes = True

    def do_release_writes(self, args: Args) -> None:
        for node in args.numbers():
            member = self._cluster.members[node]
            member.holds_writes = False
            if member.pending is not None:
                self._cluster.write(member)

    def do_hold_reads(self, args: Args) -> None:
        for node in args.numbers():
            self._cluster.members[node].holds_reads = True

    def do_read(self, args: Args) -> None:
        self._cluster.read(self._member(args))

    def do_write(self, args: Args) -> None:
        self._cluster.write(self._member(args))

    def do_compact(self, args: Args) -> None:
        member, index = self._member(args), args.number()
        assert member.disk.base.index < index <= member.core.log.applied
        member.disk.compact(index)
        member.core.log.first_index = index + 1
        self._say(f"{member.id} log begins at {index + 1}")

    def do_lose_log(self, args: Args) -> None:
        member, index = self._member(args), args.number()
        member.lose_log(index)
        self._say(
            f"{member.id} starts in generation {member.healing_generation}: "
            f"{render.log_text(member.core)}"
        )
        self._cluster.turn(member)

    def do_offer_snapshot(self, args: Args) -> None:
        self._cluster.offer(self._member(args), args.number())

    def do_install(self, args: Args) -> None:
        member, source = self._member(args), self._member(args)
        member.install(source.disk.base, source.disk.state)
        self._say(f"{member.id} starts with a snapshot: {render.log_text(member.core)}")
        self._cluster.turn(member)

    def do_snapshot_sent(self, args: Args) -> None:
        self._cluster.snapshot_ended(self._member(args), args.number(), args.number())

    def do_snapshot_failed(self, args: Args) -> None:
        self._cluster.snapshot_ended(self._member(args), args.number(), None)

    # ---------------------------------------------------------------- time

    def do_tick(self, args: Args) -> None:
        count = int(args.option("count", "1"))
        for node in args.numbers():
            for _ in range(count):
                self._cluster.tick(self._cluster.members[node])

    def do_campaign(self, args: Args) -> None:
        cluster, member = self._cluster, self._member(args)
        assert not member.core.is_leader, f"node {member.id} leads"
        before = len(cluster.in_flight)
        for count in range(1, _CAMPAIGN_TICKS_MAX):
            position = len(cluster.lines)
            role = member.core.role
            cluster.tick(member)
            asked = any(isinstance(m, VoteRequest) for m in cluster.in_flight[before:])
            if asked or (member.core.role is not Role.FOLLOWER and member.core.role is not role):
                cluster.lines.insert(position, f"{member.id} campaigns at tick {count}")
                return
        raise AssertionError(f"node {member.id} never campaigns")

    def do_elect(self, args: Args) -> None:
        cluster, member = self._cluster, self._member(args)
        nodes = args.numbers() or list(cluster.members)
        before = list(cluster.lines)
        self.do_campaign(Args([str(member.id)]))
        cluster.stabilize(nodes)
        assert member.core.is_leader, f"node {member.id} isn't elected"
        for _ in range(member.heartbeat_ticks):
            cluster.tick(member)
        cluster.stabilize(nodes)
        cluster.lines = before
        self._say(f"{member.id} leads term {member.core.term}: {render.log_text(member.core)}")

    def do_run(self, args: Args) -> None:
        cluster = self._cluster
        cluster.shows_messages = False
        ticks = args.number()
        nodes = args.numbers() or list(cluster.members)
        for _ in range(ticks):
            for node in nodes:
                if cluster.members[node].is_up:
                    cluster.tick(cluster.members[node])
            cluster.stabilize(nodes)

    # ---------------------------------------------------------------- the network

    def do_deliver(self, args: Args) -> None:
        cluster = self._cluster
        drops, doubles, reverses = args.flag("drop"), args.flag("dup"), args.flag("reverse")
        chosen = self._choose(args)
        chosen = chosen[: int(args.option("first", str(len(chosen))))]
        assert chosen, "there is no such message"
        if reverses:
            chosen.reverse()
        for message in chosen:
            if not doubles:
                cluster.in_flight.remove(message)
            if drops:
                self._say(f"{render.message_text(message)} (lost)")
            else:
                cluster.deliver(message)

    def do_stabilize(self, args: Args) -> None:
        self._cluster.stabilize(args.numbers() or list(self._cluster.members))

    def do_messages(self, args: Args) -> None:
        chosen = self._choose(args)
        for message in chosen:
            self._say(render.message_text(message))
        if not chosen:
            self._say("no message")

    def _choose(self, args: Args) -> list[Message]:
        chosen = list(self._cluster.in_flight)
        for word in args.words:
            if "->" in word:
                sender, to = word.split("->")
                chosen = [m for m in chosen if not sender or m.sender == int(sender)]
                chosen = [m for m in chosen if not to or m.to == int(to)]
            else:
                chosen = [m for m in chosen if render.message_type(m) == word]
        args.words = []
        return chosen

    def do_cut(self, args: Args) -> None:
        for a, b in self._pairs(args):
            self._cluster.cut(a, b)

    def do_heal(self, args: Args) -> None:
        for a, b in self._pairs(args):
            self._cluster.heal(a, b)

    def do_disconnect(self, args: Args) -> None:
        for a, b in self._pairs(args):
            self._cluster.cut(a, b)
            self._cluster.notice(a, b, connected=False)

    def do_connect(self, args: Args) -> None:
        for a, b in self._pairs(args):
            self._cluster.heal(a, b)
            self._cluster.notice(a, b, connected=True)

    def _pairs(self, args: Args) -> list[tuple[int, int]]:
        node, *others = args.numbers()
        return [(node, other) for other in others or self._cluster.members if other != node]

    # ---------------------------------------------------------------- requests

    def do_propose(self, args: Args) -> None:
        member, text = self._member(args), args.words.pop(0)
        peer = int(args.option("for", "0"))
        index = member.core.propose(text.encode(), 1, 0)
        if index is None:
            reason = f"leader is {member.core.leader}"
            if member.core.is_leader:
                reason = "it hands over"
            self._say(f"{member.id} refuses {text}: {reason}")
            return
        self._say(f"{member.id} proposes {index}/{member.core.term} {text}")
        if peer:
            member.core.notify_commit(peer, index)
        self._cluster.turn(member)

    def do_read_index(self, args: Args) -> None:
        member, read_id = self._member(args), args.number()
        if not member.core.read_index(read_id):
            self._say(f"{member.id} knows no leader to ask")
        self._cluster.turn(member)

    def do_transfer(self, args: Args) -> None:
        member, target = self._member(args), args.number()
        try:
            member.core.transfer(target)
        except RafthaError as error:
            self._say(f"{member.id} refuses: {error}")
        self._cluster.turn(member)

    # ---------------------------------------------------------------- membership

    def do_add(self, args: Args) -> None:
        member, node = self._member(args), args.number()
        self._change(member, lambda now: now.with_learner(node, _address(node), "primary"))

    def do_remove(self, args: Args) -> None:
        member, node = self._member(args), args.number()
        self._change(member, lambda now: now.without(node))

    def _change(self, member: Member, change: Callable[[Membership], Membership]) -> None:
        core = member.core
        try:
            index = core.change_membership(change(core.membership))
        except RafthaError as error:
            self._say(f"{member.id} refuses: {error}")
            return
        self._say(f"{member.id} proposes {index}/{core.term} {membership_text(core.membership)}")
        self._cluster.turn(member)

    def do_catch_up_again(self, args: Args) -> None:
        self._member(args).core.catch_up_again(args.number())

    def do_dismiss(self, args: Args) -> None:
        member = self._member(args)
        member.core.removed()
        self._cluster.turn(member)

    # ---------------------------------------------------------------- looking

    def do_raft_log(self, args: Args) -> None:
        member = self._member(args)
        self._say(f"{member.id} {render.log_text(member.core)}")

    def do_applied(self, args: Args) -> None:
        member = self._member(args)
        self._say(f"{member.id} {render.entries_text(member.applied)}")

    def do_status(self, args: Args) -> None:
        for node in args.numbers() or self._cluster.members:
            member = self._cluster.members[node]
            lines = render.status_lines(member.core) if member.is_up else [f"{node} down"]
            for line in lines:
                self._say(line)

    def _member(self, args: Args) -> Member:
        return self._cluster.members[args.number()]

    def _say(self, line: str) -> None:
        self._cluster.say(line)


def _address(node: int) -> str:
    return f"127.0.0.1:{7100 + node}"
