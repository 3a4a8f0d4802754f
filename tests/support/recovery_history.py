"""A history of writes, backups, log in a repository, and forks; and an oracle that kept versions.

The oracle shares no code with the state: it applies commands one by one to a dict, and keeps a copy
after each. So it knows the state as of every sequence, and as of every time.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

from raftha.entry import LOG_START, Entry, EntryKind, LogPosition, encode_group, make_entry
from raftha.membership import Member, Membership
from raftha.storage.backup import names
from raftha.storage.backup.archive_records import RestoreRecord
from raftha.storage.backup.crypto import OperatorKey
from raftha.storage.backup.destination import Destination, create_or_compare
from raftha.storage.backup.image_stores import STATE
from raftha.storage.backup.manifest import LETTERS, StoredManifest
from raftha.storage.backup.planner import plan_recovery
from raftha.storage.backup.recovery import Target
from raftha.storage.backup.replay import build_image
from raftha.storage.backup.repository_records import LineageRecord
from raftha.storage.backup.segments import encode_segment, name_of
from raftha.storage.backup.source import StoreSource
from raftha.storage.backup.spool import Spool
from raftha.storage.backup.take import TakeHooks, TakeOrder, TakeResult, take
from raftha.storage.backup.timeline import begin_lineage
from raftha.storage.state.catalog_changes import Prepare, Restore, encode_change
from raftha.storage.state.commands import (
    pack_call,
    pack_compare_and_set,
    pack_delete,
    pack_put,
)
from raftha.storage.state.meta import move_meta
from raftha.storage.state.restored import meta_behind
from raftha.storage.state.state import State
from raftha.storage.state.versions import common, encode_versions
from tests.sim.disk import SimulatedDisk
from tests.sim.store import DictStore
from tests.support.backups import FakeTime, memory, repository_of
from tests.support.dict_stores import DictStores
from tests.support.entries import group, opening
from tests.support.state_bench import Kit

CLUSTER = "cd" * 16
START_US = 1_760_000_000_000_000
KEYS = [b"key %02d" % number for number in range(25)]


@dataclass
class Version:
    """The state after a command, or after an entry without any: of a lineage, at a moment."""

    lineage: str
    index: int
    sequence: int
    time_us: int
    pairs: dict[bytes, bytes]
    is_end: bool = False
    """Whether it is that of a whole entry."""


@dataclass
class Command:
    """A command, packed, and what the oracle does for it."""

    packed: bytes
    kind: str
    key: bytes
    value: bytes | None = None
    expected: bytes | None = None

    def apply(self, pairs: dict[bytes, bytes]) -> None:
        """Do it."""
        if self.kind == "add":
            pairs[self.key] = b"%d" % (int(pairs.get(self.key, b"0")) + 7)
        elif self.kind == "fail":
            pass
        elif self.kind != "cas" or pairs.get(self.key) == self.expected:
            if self.value is None:
                pairs.pop(self.key, None)
            else:
                pairs[self.key] = self.value


@dataclass
class History:
    """One cluster's log, as one node; after a fork it is the new cluster's."""

    rng: Random
    destination: Destination = field(default_factory=memory)
    operator: OperatorKey | None = None
    lineage: str = "ab" * 16

    def __post_init__(self) -> None:
        self.repository = repository_of(self.destination, operator=self.operator)
        self.versions: list[Version] = []
        self.time_us = START_US
        self.term = 1
        self.model: dict[bytes, bytes] = {}
        self.salts = count(1)
        self.earliest = 0
        """The sequence of the first backup."""
        self._begin(State(DictStore(), Kit()), LOG_START)
        self.entry(EntryKind.MEMBERSHIP, self.membership().encode())
        abilities = common([self.state.abilities])
        assert abilities is not None
        self.entry(EntryKind.ADMIN, encode_versions(abilities))
        self.open_session()

    def _begin(self, state: State, last: LogPosition) -> None:
        self.state = state
        self.store = state._store
        self.last = last
        self.entries: list[Entry] = []
        self.archived = last.index
        self.spool = Spool(SimulatedDisk(Random(1)), "/spool", 1 << 24, state.applied)
        self.newest: TakeResult | None = None
        self.base: TakeResult | None = None
        self.numbers = count(1)

    def membership(self) -> Membership:
        """Of this lineage."""
        member = Member("127.0.0.1:7001", incarnation=1)
        return Membership({1: member}, frozenset(), CLUSTER, self.lineage)

    def open_session(self) -> None:
        """Have a session for the writes that come."""
        payload = encode_group(opening(self.rng.getrandbits(60)))
        entry = self.entry(EntryKind.BATCH, payload)
        del entry
        self.session, self.number = self.opened, 0

    # ---------------------------------------------------------------- the log

    def entry(self, kind: EntryKind, payload: bytes, commands: Sequence[Command] = ()) -> Entry:
        """Append an entry, apply it, and keep the versions it makes."""
        entry = make_entry(self.last, self.term, self.time_us, kind, payload, len(commands))
        first = self.last.last_sequence
        self.entries.append(entry)
        self.last = entry.position
        applied = self.state.apply(entry)
        if applied:
            self.opened = applied[0].outcome.session
        for number, command in enumerate(commands, first + 1):
            command.apply(self.model)
            self.keep(entry, number, is_end=False)
        self.keep(entry, entry.last_sequence, is_end=True)
        return entry

    def keep(self, entry: Entry, sequence: int, *, is_end: bool) -> None:
        """Remember the state as it is now."""
        version = Version(
            self.lineage, entry.index, sequence, entry.time_us, dict(self.model), is_end
        )
        self.versions.append(version)

    def commands(self, number: int) -> list[Command]:
        """Some commands at random."""
        return [self.command() for _ in range(number)]

    def command(self) -> Command:
        """A command at random."""
        key, value = self.rng.choice(KEYS), b"%d" % self.rng.randrange(1000)
        kind = self.rng.choice(["put", "put", "delete", "cas", "add", "add", "fail"])
        if kind == "put":
            return Command(pack_put(key, value), kind, key, value)
        if kind == "delete":
            return Command(pack_delete(key), kind, key)
        if kind == "cas":
            expected = self.rng.choice([None, self.model.get(key), b"0"])
            return Command(pack_compare_and_set(key, expected, value), kind, key, value, expected)
        if kind == "add":
            return Command(pack_call("add", (key, 7)), kind, key)
        return Command(pack_call("put_then_raise", (key, "ValueError")), kind, key)

    def write(self, number: int = 0) -> Entry:
        """An entry of one or two groups with commands, later than the one before."""
        self.time_us += self.rng.choice([0, 0, 1, 1000, 5_000_000])
        payload, all_commands = b"", []
        for _ in range(self.rng.choice([1, 1, 2])):
            commands = self.commands(number or self.rng.randrange(1, 6))
            packed = [command.packed for command in commands]
            self.number = next(self.numbers)
            payload += encode_group(group(self.session, self.number, packed))
            all_commands += commands
        return self.entry(EntryKind.BATCH, payload, all_commands)

    def repeat(self) -> None:
        """A group that was applied before comes again: it keeps its numbers and changes nothing."""
        nothing = [Command(pack_put(b"never", b"1"), "fail", b"never")]
        if not self.number:
            return
        payload = encode_group(group(self.session, self.number, [c.packed for c in nothing]))
        self.entry(EntryKind.BATCH, payload, nothing)

    def fail_over(self) -> None:
        """Another leader: its first entry has no commands."""
        self.term += self.rng.choice([1, 2])
        self.entry(EntryKind.NOOP, b"")

    # ---------------------------------------------------------------- the repository

    def archive(self, cuts: int = 1, level: int = 0) -> None:
        """Put what is not archived yet, as some segments."""
        waiting = [entry for entry in self.entries if entry.index > self.archived]
        if not waiting:
            return
        size = max(1, len(waiting) // cuts)
        for at in range(0, len(waiting), size):
            self.put_segment(waiting[at : at + size], level)
        self.archived = self.last.index

    def put_segment(self, entries: Sequence[Entry], level: int = 0) -> names.SegmentName:
        """Put a segment with these entries."""
        name = name_of(self.lineage, level, entries)
        salt = next(self.salts).to_bytes(16, "little")
        data = encode_segment(name, entries, self.repository.key, 1, salt=salt)
        for destination in self.repository.destinations.values():
            if not any(
                info.name == names.segment_name(name)
                for info in destination.list(names.log_folder(self.lineage))
            ):
                create_or_compare(destination, names.segment_name(name), data)
        return name

    def merge(self) -> None:
        """Level 1 of some neighbours; sometimes those of level 0 are deleted."""
        held = [entry for entry in self.entries if entry.index <= self.archived]
        if len(held) < 2:
            return
        first = self.rng.randrange(len(held) - 1)
        last = min(len(held), first + self.rng.randrange(2, 12))
        made = self.put_segment(held[first:last], 1)
        if self.rng.random() < 0.5:
            for destination in self.repository.destinations.values():
                for info in destination.list(names.log_folder(self.lineage, 0)):
                    name = names.parse_segment_name(info.name)
                    if made.first <= name.first and name.last <= made.last:
                        destination.delete(info.name)

    def overlap(self) -> None:
        """Another archiver has cut the log elsewhere."""
        held = [entry for entry in self.entries if entry.index <= self.archived]
        if held:
            first = self.rng.randrange(len(held))
            self.put_segment(held[first : first + self.rng.randrange(1, 9)])

    def checkpoint(self) -> None:
        """As the storage threads do."""
        frozen = self.state.freeze()
        self.spool.add(frozen.position, frozen.meta, frozen.items)
        self.store.write(frozen.items, frozen.meta)
        self.spool.commit(frozen.position)
        self.state.checkpoint_done()

    def backup(self, mode: str = "full", *, late: int = 0) -> TakeResult:
        """Take a backup, whose position is `late` entries behind its beginning."""
        if self.newest is None:
            mode = "full"
        begin = self.entry(EntryKind.NOOP, b"")
        for _ in range(late):
            self.write()
        self.checkpoint()
        parent = None
        before = self.newest if mode == "incremental" else self.base
        if mode != "full" and before is not None:
            parent = StoredManifest(before.manifest, before.manifest_sha256)
        order = TakeOrder(
            id=begin.index,
            label=names.label(begin.time_us, LETTERS[mode], begin.index),
            mode=mode,
            lineage=self.lineage,
            node=1,
            started_us=begin.time_us,
            destinations=tuple(self.repository.destinations),
            parent=parent,
            level=1,
            machine="Kit",
            commands=tuple(sorted(Kit.commands)),
        )
        hooks = TakeHooks(
            waits=FakeTime().waits, now_us=lambda: 77, random=Random(next(self.salts)).randbytes
        )
        source = StoreSource(self.store, self.spool)
        self.newest = take(order, source, self.repository, hooks)
        if mode == "full":
            self.base = self.newest
        self.earliest = self.earliest or self.newest.manifest.position.last_sequence
        return self.newest

    @property
    def newest_position(self) -> LogPosition:
        """That of the last backup."""
        assert self.newest is not None
        return self.newest.manifest.position

    # ---------------------------------------------------------------- recoveries and forks

    def go_back(self, target: Target) -> None:
        """A recovery of the live cluster: the pairs of then, and sessions and all else of now."""
        version = self.at(target, self.lineage)
        prepare = Prepare(
            self.rng.getrandbits(60), self.lineage, version.sequence, 0, (), 0, 60, "test"
        )
        begun = self.entry(EntryKind.ADMIN, encode_change(prepare))
        store = DictStore()
        store.write(tuple(sorted(version.pairs.items())), b"")
        digest = store.digest()
        assert digest is not None
        payload = encode_change(Restore(begun.index, digest.hex))
        entry = make_entry(self.last, self.term, self.time_us, EntryKind.RESTORE, payload, 1)
        store.write((), meta_behind(self.state, entry))
        self.state, self.store = State(store, Kit()), store
        self.entries.append(entry)
        self.last = entry.position
        self.model = dict(version.pairs)
        self.keep(entry, entry.last_sequence, is_end=True)
        self.spool = Spool(SimulatedDisk(Random(1)), "/spool", 1 << 24, self.state.applied)
        self.newest = self.base = None
        record = RestoreRecord(
            self.lineage,
            entry.index,
            entry.last_sequence,
            version.sequence,
            digest.hex,
            entry.time_us,
        )
        for destination in self.repository.destinations.values():
            create_or_compare(destination, record.name, record.encode())

    def restore(self, target: Target) -> None:
        """Restore into a new lineage, as `run_restore` does."""
        stores = DictStores()
        plan = plan_recovery(self.repository, target, lineage=self.lineage)
        image = build_image(plan, self.repository, stores, Kit())
        # What has the time of the last entry may not be archived yet: it isn't there then.
        at = image.position
        versions = self.own_versions(self.lineage)
        kept = next(v for v in versions if (v.index, v.sequence) == (at.index, at.last_sequence))
        assert stores.pairs() == kept.pairs
        self._found(plan.lineage, image.position, stores, is_jump=True)

    def _found(
        self, parent: str, position: LogPosition, stores: DictStores, *, is_jump: bool
    ) -> None:
        highest = max(version.sequence for version in self.versions)
        kept = self.archived
        if self.newest is not None:
            kept = max(kept, self.newest.manifest.position.index)
        # The rest is lost with the cluster.
        self.versions = [v for v in self.versions if v.lineage != self.lineage or v.index <= kept]
        self.lineage = self.rng.randbytes(16).hex()
        sequence = (highest // 10**9 + 2) * 10**9
        beginning = begin_lineage(position, self.lineage, sequence)
        self.repository.write_lineage(
            LineageRecord(
                lineage=self.lineage,
                parent=parent,
                fork_index=position.index,
                fork_sequence=position.last_sequence,
                fork_hash=position.hash.hex(),
                reason="restore",
                cluster_name="bank",
                created_us=position.time_us,
            )
        )
        self.model = stores.pairs()
        store = stores.open(STATE)
        meta = store.meta()
        assert meta is not None
        membership = self.membership().encode()
        store.write((), move_meta(meta, beginning, membership))
        self.time_us = max(self.time_us, position.time_us) + 10_000_000
        self.term = beginning.term + 1
        state = State(store, Kit())
        self._begin(state, beginning)
        before, self.time_us = self.time_us, 0
        self.entry(EntryKind.MEMBERSHIP, membership)
        self.time_us = before
        self.entry(EntryKind.NOOP, b"")
        self.open_session()

    def continue_as_fork(self) -> None:
        """`recover-quorum`: the log goes on as another lineage, whose fork the backups know."""
        assert self.newest is not None
        self.archive()
        parent, position = self.lineage, self.newest.manifest.position
        self.lineage = self.rng.randbytes(16).hex()
        self.repository.write_lineage(
            LineageRecord(
                lineage=self.lineage,
                parent=parent,
                fork_index=position.index,
                fork_sequence=position.last_sequence,
                fork_hash="",
                reason="fork",
                cluster_name="bank",
                created_us=self.time_us,
            )
        )
        self.term += 1
        self.entries.clear()
        self.newest = None
        self.entry(EntryKind.MEMBERSHIP, self.membership().encode())

    # ---------------------------------------------------------------- the oracle

    def own_versions(self, lineage: str) -> list[Version]:
        """The versions of a lineage's history, in order."""
        records = self.repository.read_lineages()
        found: list[Version] = []
        until_index = until_sequence = 1 << 62
        while lineage:
            own = [
                v
                for v in self.versions
                if v.lineage == lineage and v.index <= until_index and v.sequence <= until_sequence
            ]
            found = own + found
            record = records.get(lineage)
            if record is None or not record.parent:
                break
            if record.fork_hash:
                until_index = min(until_index, record.fork_index)
                until_sequence = min(until_sequence, record.fork_sequence)
            lineage = record.parent
        return found

    def at(self, target: Target, lineage: str = "") -> Version:
        """The state as of a moment."""
        versions = self.own_versions(lineage or self.lineage)
        if target.sequence is not None:
            return next(v for v in versions if v.sequence == target.sequence)
        if target.time_us is not None:
            return versions[bisect_right([v.time_us for v in versions], target.time_us) - 1]
        return versions[-1]

    def recovered(
        self, target: Target, lineage: str = "", *, buffer_bytes: int = 500
    ) -> dict[bytes, bytes]:
        """What a recovery to this target has."""
        from raftha.storage.backup.replay import ReplayHooks

        stores = DictStores()
        plan = plan_recovery(self.repository, target, lineage=lineage)
        json.dumps(plan.as_dict())
        hooks = ReplayHooks(buffer_bytes=buffer_bytes)
        image = build_image(plan, self.repository, stores, Kit(), hooks)
        assert image.position == plan.position
        return stores.pairs()
