"""Clients: their requests to the members, the replies, and what they may conclude from them.

Theory of operation. A `Call` is one write, read or group under way at one member. It ends with the
member's reply, or with the member's death. Each write carries its call's id, so the oracle knows
its fate: a call that got a receipt took effect exactly once, at the sequence and with the result of
the receipt; one that was rejected never; any other at most once.

Reads and writes of a key are linearizable if they fit the order in which the log wrote that key. A
call begins when the key is at some version known to be complete: seen by a read or acknowledged as
a write that ended before. What the call reads or writes must not be older.

A read that may be of a certain age must return what was current no longer ago than that, at some
moment, by the true time: what was complete before is older than it may be. How long that is the
member's own clock says, drift and all.

`Writer` asks one member after the other and doesn't retry. `SessionClient` has a session of its
own and sends a group again, through any member and under the same number, until it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from raftha.errors import (
    AcknowledgementTimeout,
    CommandFailed,
    Indeterminate,
    RafthaError,
    Rejected,
    StorageFailed,
    StorageFull,
)
from raftha.node.node import Node
from raftha.node.operations import (
    ALL_VOTERS,
    MAJORITY,
    AcknowledgedWrite,
    CallOperation,
    GroupOperation,
    Operation,
    ReadOperation,
    WriteOperation,
)
from raftha.storage.state.commands import pack_call, pack_compare_and_set, pack_put
from raftha.storage.state.owners import make_owner
from raftha.storage.state.sessions import Outcome, Verdict, receipts
from raftha.types import Receipt
from tests.sim.invariants import Invariants
from tests.sim.member import Member
from tests.sim.receipts import Receipts
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

AGES_S = (0.005, 0.05, 0.2, 1.0, 5.0)


class History:
    """All calls' fates, and what is complete of each key."""

    def __init__(self, world: World, invariants: Invariants, receipts: Receipts) -> None:
        self.world = world
        self.receipts = receipts
        self.acknowledged: set[bytes] = set()
        self.rejected: set[bytes] = set()
        self.unknown: set[bytes] = set()
        self.open: dict[int, Call] = {}
        self._invariants = invariants
        self.memberships = invariants.memberships
        self._complete: dict[bytes, list[tuple[float, int]]] = {}
        """By key: since when which version is complete."""
        self._calls = 0

    def new_id(self) -> bytes:
        """An id for a command."""
        self._calls += 1
        return b"call %d" % self._calls

    def complete(self, key: bytes) -> int:
        """The newest version of `key` that is known to be complete."""
        return self.complete_at(key, self.world.now)

    def complete_at(self, key: bytes, time: float) -> int:
        """The newest version of `key` that was known to be complete then."""
        since = (version for at, version in reversed(self._complete.get(key, ())) if at <= time)
        return next(since, 0)

    def acknowledge(
        self,
        command: Command,
        receipt: Receipt | CommandFailed,
        call: Call | None = None,
        *,
        is_late: bool = False,
    ) -> None:
        """A command's receipt has come; `is_late`: fewer replicas than requested had it in time."""
        self.acknowledged.add(command.id)
        self.unknown.discard(command.id)
        if isinstance(receipt, CommandFailed):
            is_skipped = receipt.kind == "Skipped" and command.id in self._invariants.oracle.skipped
            if command.kind != "fail" and not is_skipped:
                raise Violation(f"{command.id!r} failed: {receipt}")
            self.world.counts["command failed"] += 1
            return
        oracle = self._invariants.oracle
        effect = oracle.effects.get(receipt.sequence)
        if effect is None or effect.call != command.id:
            raise Violation(
                f"{command.id!r} was acknowledged at {receipt.sequence}, where the log has {effect}"
            )
        entry = self._invariants.committed[receipt.index - 1]
        if (entry.term, entry.time_us) != (receipt.term, receipt.time_us):
            raise Violation(f"{command.id!r} has a receipt of another entry {receipt.index}")
        if (effect.succeeded, effect.result) != (receipt.succeeded, receipt.result):
            raise Violation(f"{command.id!r} got {receipt}, the log says {effect}")
        self._invariants.check_acknowledged(receipt.index, receipt.acked_by)
        if call is not None:
            claimed = receipt.acknowledgement
            self.receipts.check(call.member, call.acks, is_late, entry, claimed)
        self._see(command, effect.key, receipt.sequence if receipt.succeeded else 0)

    def read(self, command: Command, value: bytes | None) -> None:
        """A read has answered."""
        version = self._invariants.oracle.versions.get((command.key, value))
        if version is None and value is not None:
            raise Violation(f"a read of {command.key!r} got {value!r}, which isn't committed")
        version = version or 0
        self._see(command, command.key, version, is_read=True)

    def _see(self, command: Command, key: bytes, version: int, *, is_read: bool = False) -> None:
        if not version and not is_read:
            return
        if version < command.floor:
            raise Violation(
                f"{command.kind} {command.id!r} of {key!r} saw version {version}, but "
                f"{command.floor} was complete before it began"
            )
        if version > self.complete(key):
            self._complete.setdefault(key, []).append((self.world.now, version))

    def reject(self, command: Command) -> None:
        """A command surely had no effect, and never will."""
        self.rejected.add(command.id)
        self.unknown.discard(command.id)

    def count(self) -> None:
        """Add the outcomes of all calls to the world's counts."""
        counts, oracle = self.world.counts, self._invariants.oracle
        counts["acknowledged"] += len(self.acknowledged)
        counts["rejected"] += len(self.rejected)
        counts["unknown"] += len(self.unknown)
        counts["duplicate suppressed"] += oracle.duplicates
        counts["session expired"] += oracle.expired
        counts["session crowded out"] += oracle.crowded_out

    def verdict(self) -> None:
        """At the end, check that each call took effect as often as its client learned."""
        applications = self._invariants.oracle.applications
        for call, count in applications.items():
            if count > 1:
                raise Violation(f"{call!r} was applied {count} times")
        for call in sorted(self.acknowledged):
            if applications[call] != 1:
                raise Violation(f"{call!r} was acknowledged and applied {applications[call]} times")
        for call in sorted(self.rejected):
            if applications[call]:
                raise Violation(f"{call!r} was rejected, and applied all the same")


class Command:
    """One command or read of a client."""

    def __init__(self, history: History, kind: str, key: bytes) -> None:
        self.id = history.new_id()
        self.kind = kind
        self.key = key
        self.began_at = history.world.now
        self.floor = history.complete(_versioned(kind, key))
        self.name = kind if kind in ("increment", "fail") else ""
        """The state machine's command that it calls."""

    def pack(self, rng: Random, known: list[bytes]) -> bytes:
        """The command's bytes; `known` are values that a comparison may expect."""
        if self.kind == "put":
            return pack_put(self.key, self.id)
        if self.kind == "compare":
            expected = rng.choice(known) if known and rng.random() < 0.8 else None
            return pack_compare_and_set(self.key, expected, self.id)
        if self.kind == "increment":
            return pack_call(self.name, [self.key, self.id])
        return pack_call("fail", [self.id])


def _versioned(kind: str, key: bytes) -> bytes:
    return b"counter " + key if kind == "increment" else key


class Call:
    """An operation under way at `member`; `client.ended` is told its result."""

    def __init__(
        self, client: Writer | SessionClient | GreedyClient, member: Member, commands: list[Command]
    ) -> None:
        self.member = member
        self.commands = commands
        self.acks = MAJORITY
        self.is_abandoned = False
        self._client = client
        client.history.open[id(self)] = self

    def done(self, result: Any) -> None:
        """`Waiter`: the member has answered, or died."""
        del self._client.history.open[id(self)]
        self._client.ended(self, result)


class Writer:
    """Asks a member for something, waits, thinks, asks the next one."""

    def __init__(
        self, name: str, history: History, swarm: Swarm, members: Mapping[int, Member]
    ) -> None:
        self.history = history
        self.is_active = True
        self.is_busy = False
        self._world = history.world
        self._rng = history.world.stream(name)
        self._modes = history.world.stream(f"{name} modes")
        self._ages = history.world.stream(f"{name} ages")
        self._swarm = swarm
        self._members = members
        self._known: list[bytes] = []
        self._member = self._rng.randint(1, swarm.nodes)
        for _ in range(swarm.depth):
            self._later()

    def _later(self) -> None:
        self._world.at(self._swarm.think_s * self._rng.expovariate(1), self._ask)

    def _ask(self) -> None:
        if not self.is_active:
            return
        rng = self._rng
        if rng.random() < 0.3:
            self._member = rng.randint(1, self._swarm.nodes)
        member = self._members[self._member]
        if not member.is_up:
            self._member = rng.randint(1, self._swarm.nodes)
            self._later()
            return
        key = b"key %d" % rng.randrange(self._swarm.keys)
        kind = rng.choices(("put", "compare", "increment", "read", "fail"), (25, 15, 30, 28, 2))[0]
        command = Command(self.history, kind, key)
        deadline = member.deadline(self._swarm.timeout_s * rng.uniform(0.5, 1))
        call = Call(self, member, [command])
        operation: Operation
        if kind == "read":
            operation = self._read(call, deadline)
        else:
            call.acks = MAJORITY
            if not self._swarm.is_majority_enough:
                larger = _larger_quorum(self._swarm)
                call.acks = self._modes.choice((MAJORITY, MAJORITY, ALL_VOTERS, larger))
            if command.name and "advance" in member.machine.commands and self._modes.random() < 0.3:
                command.name = command.name.replace("increment", "advance")
            packed = command.pack(rng, self._known)
            if command.name:
                operation = CallOperation(call, deadline, packed, command.name, call.acks)
            elif call.acks:
                operation = AcknowledgedWrite(call, deadline, packed, call.acks)
            else:
                operation = WriteOperation(call, deadline, packed)
        self._world.note(member.id, f"client {kind}", f"{command.id!r} {key!r}")
        member.submit([operation])

    def _read(self, call: Call, deadline: float) -> ReadOperation:
        (command,) = call.commands
        max_age_s = 0.0
        if self._swarm.aged_chance and self._ages.random() < self._swarm.aged_chance:
            command.kind, max_age_s = "aged read", self._ages.choice(AGES_S)

        def read(node: Node) -> bytes | None:
            value = node.state.get(command.key)
            if max_age_s:
                self._allow_age(call, max_age_s)
            return value

        return ReadOperation(call, deadline, read, is_linearizable=True, max_age_s=max_age_s)

    def _allow_age(self, call: Call, max_age_s: float) -> None:
        """The value is read now: it may be as old as the caller allows, by the member's clock.

        One that isn't read at once must have been current no longer before the call.
        """
        (command,), member = call.commands, call.member
        took_at, taken = member.took
        is_at_once = took_at == self._world.now and any(item.waiter is call for item in taken)
        self._world.counts["aged read at once"] += is_at_once
        clock = member.clock
        since = self._world.now if is_at_once else command.began_at
        oldest = clock.world_time(clock.at(since) - max_age_s) - 1e-6
        newest = self.history.complete(command.key)
        command.floor = self.history.complete_at(command.key, oldest)
        self._world.counts["aged read of what has changed since"] += command.floor < newest

    def ended(self, call: Call, result: Any) -> None:
        """A call's answer."""
        command = call.commands[0]
        self._world.note(call.member.id, "client heard", f"{command.id!r} {_describe(result)}")
        if command.kind in ("read", "aged read"):
            if not isinstance(result, Exception):
                self.history.read(command, result)
                self._count_read(call.member, command.kind)
                if result is not None:
                    self._known = [*self._known[-3:], result]
        elif isinstance(result, Receipt | CommandFailed):
            self.history.acknowledge(command, result, call)
        elif isinstance(result, AcknowledgementTimeout):
            self.history.acknowledge(command, result.receipt, call, is_late=True)
        elif isinstance(result, Rejected | StorageFailed):
            self.history.reject(command)
        else:
            assert isinstance(result, Indeterminate), repr(result)
            self.history.unknown.add(command.id)
        if isinstance(result, StorageFull):
            self._world.counts["heard StorageFull"] += 1
        if isinstance(result, Exception):
            # So that it doesn't stay with a member that never answers.
            self._member = self._rng.randint(1, self._swarm.nodes)
        self._later()

    def _count_read(self, member: Member, kind: str) -> None:
        self._world.counts[kind] += 1
        if member.node is not None and not member.node.core.is_leader:
            self._world.counts["read on a follower"] += 1


class SessionClient:
    """Opens a session and sends numbered groups in it, each until its outcome is known."""

    def __init__(
        self, name: str, history: History, swarm: Swarm, members: Mapping[int, Member]
    ) -> None:
        self.history = history
        self.is_active = True
        self._name = name.replace(" ", "-")
        self._world = history.world
        self._rng = history.world.stream(name)
        self._modes = history.world.stream(f"{name} modes")
        self._swarm = swarm
        self._members = members
        self._session = 0
        self._number = 0
        self._tries = 0
        self._group: list[Command] = []
        self._packed: list[bytes] = []
        self._later()

    @property
    def is_busy(self) -> bool:
        """Whether a group is still to be sent again."""
        return bool(self._group)

    def _later(self) -> None:
        self._world.at(self._swarm.think_s * self._rng.expovariate(1), self._ask)

    def _ask(self) -> None:
        if not self._group and not self.is_active:
            return
        rng = self._rng
        member = self._members[self._choose_node()]
        if not member.is_up:
            self._later()
            return
        if self._session and not self._group:
            self._number += 1
            self._tries = 0
            self._group, self._packed = [], []
            for _ in range(rng.randint(1, 3)):
                kind, key = rng.choice(("put", "increment")), b"key %d" % rng.randrange(2)
                command = Command(self.history, kind, key)
                self._group.append(command)
                self._packed.append(command.pack(rng, []))
        self._tries += 1
        self._world.counts["retry"] += bool(self._session) and self._tries > 1
        deadline = member.deadline(self._swarm.timeout_s * rng.uniform(0.2, 1))
        call = Call(self, member, self._group)
        # Sometimes the client times out, and asks elsewhere while the first is under way.
        self._world.at(self._swarm.timeout_s * rng.uniform(0.1, 2), self._time_out, call)
        # At last it is content with what it can get: there may be too few voters for more.
        if self._swarm.do_groups_wait and self._session and self.is_active:
            call.acks = self._modes.choice((MAJORITY, ALL_VOTERS, _larger_quorum(self._swarm)))
        operation = GroupOperation(
            call,
            deadline,
            self._session,
            self._number,
            self._number,
            self._packed,
            call.acks,
            owner=make_owner(member.id, f"{self._name} 1"),
            names=tuple(sorted({command.name for command in self._group} - {""})),
        )
        what = f"number {self._number} try {self._tries}" if self._session else "opening"
        self._world.note(member.id, "session client", f"{self._session} {what}")
        member.submit([operation])

    def _choose_node(self) -> int:
        """Any node; after the chaos a member, since other nodes can't answer any more."""
        if self.is_active:
            return self._rng.randint(1, self._swarm.nodes)
        return self._rng.choice(sorted(self.history.memberships.latest.members))

    def _time_out(self, call: Call) -> None:
        if id(call) in self.history.open and not call.is_abandoned:
            call.is_abandoned = True
            self._later()

    def ended(self, call: Call, result: Any) -> None:
        """A call's answer; one that isn't waited for any more may still tell the outcome."""
        self._world.note(call.member.id, "client heard", _describe(result))
        if isinstance(result, Outcome):
            self._take_outcome(call, result)
        elif isinstance(result, AcknowledgementTimeout):
            self._take_outcome(call, result.receipt, is_late=True)
        elif not isinstance(result, RafthaError):
            raise Violation(f"a group was answered with {result!r}")
        if not call.is_abandoned:
            self._later()

    def _take_outcome(self, call: Call, outcome: Outcome, *, is_late: bool = False) -> None:
        if call.commands is not self._group:
            return
        if not call.commands:
            if outcome.session and not self._session:
                self._session, self._number = outcome.session, 0
                self._group = []
            return
        if outcome.verdict is Verdict.APPLIED:
            for command, receipt in zip(call.commands, receipts(outcome), strict=True):
                self.history.acknowledge(command, receipt, call, is_late=is_late)
        elif self._tries == 1 and outcome.verdict is Verdict.SESSION_EXPIRED:
            for command in call.commands:
                self.history.reject(command)
        else:
            self.history.unknown.update(command.id for command in call.commands)
        self._group, self._packed = [], []
        if outcome.verdict is not Verdict.APPLIED:
            self._session, self._number = 0, 0


class GreedyClient:
    """Opens one session after the other, on few connections, and uses none of them."""

    def __init__(
        self, name: str, history: History, swarm: Swarm, members: Mapping[int, Member]
    ) -> None:
        self.history = history
        self.is_active = True
        self.is_busy = False
        self._name = name.replace(" ", "-")
        self._world = history.world
        self._rng = history.world.stream(name)
        self._swarm = swarm
        self._members = members
        self._later()

    def _later(self) -> None:
        self._world.at(self._swarm.think_s * self._rng.expovariate(1), self._ask)

    def _ask(self) -> None:
        if not self.is_active:
            return
        member = self._members[self._rng.randint(1, self._swarm.nodes)]
        if not member.is_up:
            self._later()
            return
        owner = make_owner(member.id, f"{self._name} {self._rng.randrange(3)}")
        deadline = member.deadline(self._swarm.timeout_s)
        operation = GroupOperation(Call(self, member, []), deadline, 0, 0, 0, [], owner=owner)
        member.submit([operation])

    def ended(self, call: Call, result: Any) -> None:
        """The answer is of no interest."""
        self._world.counts["greedy session"] += isinstance(result, Outcome)
        self._later()


def _larger_quorum(swarm: Swarm) -> int:
    """One voter more than a majority of the first members, if there are so many."""
    return min(swarm.size // 2 + 2, swarm.size)


def _describe(result: Any) -> str:
    if isinstance(result, Exception):
        return f"{type(result).__name__}: {result}"
    if isinstance(result, Receipt):
        return f"receipt of sequence {result.sequence} in entry {result.index}"
    return str(result)[:80]
