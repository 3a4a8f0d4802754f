"""The meaning of the committed log: a second, plain reading, to compare members' states with.

Theory of operation. The oracle is given each entry once, when it is first known to be committed. It
shares no code with `raftha.storage` but the parsing of groups: sessions are a dict, outcomes are
kept for ever, and a group is applied if it is the first with its session and number and that number
isn't below the floor. Every command carries the id of the call that made it, so `applications` says
how often each call took effect, and `versions` in which order a key got its values.
"""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from typing import Any, NamedTuple

import msgpack

from raftha.entry import Entry, EntryKind, Group, decode_groups
from raftha.storage.state.commands import CALL, COMPARE_AND_SET, PUT
from raftha.storage.state.machine import StateMachine, Transaction, command

SESSION_TTL_US = 3600 * 1_000_000
COUNTER = b"counter "
MARK = b"mark "
POISON, POISON_CALL = "poison", re.compile(rb"poisonous call \d+\.")
"""A command that ends every node, and its argument: see `poison.py`."""


class Counters(StateMachine):
    """The state machine under test: counters that remember the calls that incremented them."""

    failures = 0

    @command
    def increment(self, txn: Transaction, key: bytes, call: bytes) -> int:
        """Add one, and one to the call's own mark, which tells if it ran twice."""
        value = int(txn.get(COUNTER + key) or 0) + 1
        txn.put(COUNTER + key, b"%d" % value)
        txn.put(MARK + call, b"%d" % (int(txn.get(MARK + call) or 0) + 1))
        return value

    @command
    def fail(self, txn: Transaction, call: bytes) -> None:
        """Write something and raise: it must leave no trace. Each replica has another message."""
        txn.put(MARK + call, b"failed")
        self.failures += 1
        raise ValueError(f"it was asked to fail, and has {self.failures} times")


class Effect(NamedTuple):
    """An applied command: the call that made it, and the result that the call should get."""

    call: bytes
    key: bytes
    succeeded: bool
    result: Any


class _Session:
    def __init__(self, used_us: int, owner: bytes) -> None:
        self.used_us = used_us
        self.owner = owner
        self.floor = 1
        self.seen: set[int] = set()


class Oracle:
    """The state that the committed log leads to."""

    def __init__(self, sessions_max: int) -> None:
        self.crowded_out = 0
        self._sessions_max = sessions_max
        self.values: dict[bytes, bytes] = {}
        self.keeps_history = False
        """Whether `values_at` has the states of the past."""
        self._history: list[tuple[int, bytes, bytes | None]] = []
        self.effects: dict[int, Effect] = {}
        self.applications: Counter[bytes] = Counter()
        self.versions: dict[tuple[bytes, bytes | None], int] = {}
        self.sequence = 0
        self.protocol = 0
        self.machine_version = 0
        self.admin = ""
        """What the last administrative entry was about."""
        self.commands: frozenset[str] = frozenset()
        self.duplicates = 0
        self.expired = 0
        self.skipped: set[bytes] = set()
        """The calls in entries that operators have had skipped."""
        self.skips: dict[int, bytes] = {}
        """The hashes of these entries, by index."""
        self._poison: set[bytes] = set()
        self._sessions: dict[int, _Session] = {}

    def apply(self, entry: Entry) -> None:
        """Take in the next committed entry."""
        for number, session in list(self._sessions.items()):
            if session.used_us + SESSION_TTL_US < entry.time_us:
                del self._sessions[number]
        if entry.kind == EntryKind.BATCH:
            self._see_poison(entry)
            for place, group in enumerate(decode_groups(entry.payload)):
                if group.session == 0:
                    digest = sha256(entry.hash + place.to_bytes(4, "little")).digest()
                    opened = int.from_bytes(digest[:8], "little") >> 1
                    if len(self._sessions) == self._sessions_max:
                        del self._sessions[self._greediest()]
                        self.crowded_out += 1
                    self._sessions[opened] = _Session(entry.time_us, group.commands)
                elif self._is_first(group, entry.time_us):
                    self._run(group, is_skipped=entry.index in self.skips)
                self.sequence += group.count

        elif entry.kind == EntryKind.RESTORE:
            self.sequence += 1

        elif entry.kind == EntryKind.ADMIN:
            form, self.admin, *fields = msgpack.unpackb(entry.payload)
            assert form == 1
            if self.admin != "versions":
                return
            protocol, machine_version, commands = fields
            self.protocol = max(self.protocol, protocol)
            self.machine_version = max(self.machine_version, machine_version)
            self.commands |= set(commands)

    def _greediest(self) -> int:
        """The session that makes room: of the host, then of the connection, with the most."""
        idle_longest = list(self._sessions.items())
        for length in (10, 16):
            counts = Counter(session.owner[:length] for _, session in idle_longest)
            most = max(counts.values())
            name = next(
                s.owner[:length] for _, s in idle_longest if counts[s.owner[:length]] == most
            )
            idle_longest = [each for each in idle_longest if each[1].owner[:length] == name]
        return idle_longest[0][0]

    def _is_first(self, group: Group, time_us: int) -> bool:
        session = self._sessions.pop(group.session, None)
        if session is None:
            self.expired += 1
            return False
        self._sessions[group.session] = session  # The last in the order, as just used.
        session.used_us = time_us
        if group.number < session.floor:
            self.duplicates += 1
            return False
        session.floor = max(session.floor, group.floor)
        if group.number in session.seen:
            self.duplicates += 1
            return False
        session.seen.add(group.number)
        return True

    def _see_poison(self, entry: Entry) -> None:
        """A poisonous call's first entry ends every node; when it comes again, it has no effect."""
        if POISON not in self.commands:
            return
        new = {*POISON_CALL.findall(bytes(entry.payload))} - self._poison
        if new:
            self._poison |= new
            self.skips[entry.index] = entry.hash

    def _run(self, group: Group, *, is_skipped: bool) -> None:
        unpacker = msgpack.Unpacker(use_list=False, raw=False)
        unpacker.feed(group.commands)
        for place in range(group.count):
            sequence = self.sequence + 1 + place
            packed = unpacker.unpack()
            effect = self._skip(packed) if is_skipped else self._run_one(sequence, packed)
            self.effects[sequence] = effect
            self.applications[effect.call] += 1

    def _skip(self, packed: tuple[Any, ...]) -> Effect:
        call = packed[-1][-1] if packed[0] == CALL else packed[-1]
        self.skipped.add(call)
        return Effect(call, b"", True, None)

    def _run_one(self, sequence: int, packed: tuple[Any, ...]) -> Effect:
        if packed[0] == PUT:
            _, key, value = packed
            self._set(sequence, key, value)
            return Effect(value, key, True, None)
        if packed[0] == COMPARE_AND_SET:
            _, key, expected, value = packed
            is_equal = self.values.get(key) == expected
            if is_equal:
                self._set(sequence, key, value)
            return Effect(value, key, is_equal, None)
        assert packed[0] == CALL
        name, args = packed[1:]
        assert name in self.commands, f"the log calls {name}, which not all members know"
        if name == "fail":
            return Effect(args[0], b"", True, ValueError)
        key, call = args
        value = int(self.values.get(COUNTER + key, b"0")) + (2 if self.machine_version >= 2 else 1)
        self._set(sequence, COUNTER + key, b"%d" % value)
        self._write(sequence, MARK + call, b"1")
        return Effect(call, COUNTER + key, True, value)

    def _set(self, sequence: int, key: bytes, value: bytes) -> None:
        self._write(sequence, key, value)
        self.versions[key, value] = sequence

    def _write(self, sequence: int, key: bytes, value: bytes) -> None:
        self.values[key] = value
        if self.keeps_history:
            self._history.append((sequence, key, value))

    def values_at(self, sequence: int) -> dict[bytes, bytes]:
        """The state after this command."""
        assert self.keeps_history
        then = {key: value for at, key, value in self._history if at <= sequence}
        return {key: value for key, value in then.items() if value is not None}

    def restore(self, to_sequence: int) -> None:
        """The last command has put the state of an earlier one in the place of the present one.

        That is another version of each key that has changed, also of those that are gone.
        """
        then = self.values_at(to_sequence)
        for key in self.values.keys() | then.keys():
            if self.values.get(key) != then.get(key):
                self.versions[key, then.get(key)] = self.sequence
                self._history.append((self.sequence, key, then.get(key)))
        self.values = then
