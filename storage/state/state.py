"""The replicated state: applies committed entries, answers reads, and feeds checkpoints.

Theory of operation. The state as of the last checkpoint is in a `Store` (LMDB); later changes are
in a write buffer in front of it. Applying a plain put is one dict store, without disk access. A
checkpoint has three steps:

    node's thread      freeze()             the buffer becomes the frozen one, a new one takes over
    storage thread     store.write(...)     one durable transaction: the frozen buffer and the meta
    node's thread      checkpoint_done()    the frozen buffer is dropped

Reads look in the buffer, then in the frozen one, then in the store. While the frozen buffer exists,
it covers the same keys with the same values, so the store may or may not have them already.

Long work on the node's thread is split into pieces: `count` and `scan` raise `NotYet` if too many
keys were buffered since their last call, and each `prepare` does a piece of the work. Only a
command that scans can't wait, and sorts all at once.

The node's thread calls all methods, and any thread may call `get`; only `Frozen` goes to another
thread. After a crash the store holds the last complete checkpoint, and replay of the log starts
behind `applied`. Sessions are part of the state and of each checkpoint's meta, so replay recognizes
repeated groups as before.

A checkpoint's meta: CRC-32 of the rest (4 bytes, little endian), then a msgpack array

    format version   7; until the cluster uses protocol 8, so that all members can go back to the
                     build before, 6, whose catalog has no recovery points; before protocol 7 it was
                     5, without a catalog. Those before 5 were never released, and aren't read
    applied          [index, term, time_us, last_sequence, hash]
    membership       payload of the last MEMBERSHIP entry applied, nil if there was none
    sessions         see `raftha.storage.state.sessions`
    versions         what the cluster uses, [protocol, machine, [command, ...]], nil at first
    catalog          of backups, see `raftha.storage.state.catalog`; not in format 5
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, NamedTuple

import msgpack

from raftha.config import KEY_BYTES_MAX
from raftha.config.limits import VALUE_BYTES_MAX
from raftha.entry import LOG_START, Entry, EntryKind, Group, LogPosition, decode_groups
from raftha.errors import ConfigError, UpgradeRequired
from raftha.storage.state import catalog
from raftha.storage.state.buffer import SORT_PIECE, Pair, SortedItems, WriteBuffer, overlay
from raftha.storage.state.catalog import Catalog, decode_change
from raftha.storage.state.catalog_changes import RecoveryChange, Restore
from raftha.storage.state.commands import ARRAY_MAX, PUT, unpack_commands
from raftha.storage.state.machine import (
    FAILED,
    Result,
    StateMachine,
    Transaction,
    check_scan,
    collect,
    run,
)
from raftha.storage.state.sessions import Applied, FrozenSessions, Outcome, Sessions
from raftha.storage.state.store import Store, StoreDigest
from raftha.storage.state.versions import (
    VERSIONS,
    Versions,
    abilities_of,
    decode_admin,
    load_versions,
)

__all__ = ["Applied", "Frozen", "NotYet", "Outcome", "State"]

META_VERSION = 7
META_WITH_CATALOG = 6
"""Its catalog has no recovery points: written until the cluster uses the protocol that has them."""
META_BEFORE = 5
"""Without a catalog: written until the cluster uses the protocol that has one."""
DIGEST_BYTES = 32
WITHOUT_TEXT = 256
"""Added to a meta's format, it is that of a digest without the messages of exceptions. Digests of
earlier builds have them, so that the two are never compared."""
GROUPS_MAX = 1 << 16
"""Groups in one entry: a group's place in its entry is the low part of a session's id."""

LOOKUP_PIECE = 1024
"""Keys that `count` looks up in the store at a time; takes a few milliseconds."""

_KEY_BYTES = 200
"""Approximate memory of a key in the buffer, without the bytes of key and value."""
_CHUNKS = (32, 128, 512, 1024)  # Pairs read from the store at a time: few at first, then more.


class Frozen:
    """The content of a checkpoint; the storage thread calls `store.write(items, meta)`."""

    def __init__(
        self,
        items: SortedItems,
        position: LogPosition,
        membership: bytes | None,
        sessions: FrozenSessions,
        versions: Versions | None,
        catalog_fields: list[Any] | None,
    ) -> None:
        """Without the fields of a catalog, the meta is of the format that has none."""
        self.items = items
        self.position = position
        self._membership = membership
        self._sessions = sessions
        self._versions = versions
        self._catalog_fields = catalog_fields

    @property
    def meta_version(self) -> int:
        """The format of the meta."""
        if self._catalog_fields is None:
            return META_BEFORE
        return META_VERSION if len(self._catalog_fields) == catalog.FIELDS else META_WITH_CATALOG

    @cached_property
    def meta(self) -> bytes:
        """The checkpoint's meta. It is packed when it is first asked for, by the storage thread."""
        packed = self._pack(is_comparable=False)
        return zlib.crc32(packed).to_bytes(4, "little") + packed

    def _pack(self, *, is_comparable: bool) -> bytes:
        """Pack the fields; with `is_comparable`, without what may differ between replicas."""
        packer = msgpack.Packer(autoreset=False)
        packer.pack_array_header(5 if self._catalog_fields is None else 6)
        packer.pack(self.meta_version)
        packer.pack(list(self.position))
        packer.pack(self._membership)
        self._sessions.pack(packer, is_comparable=is_comparable)
        packer.pack(None if self._versions is None else self._versions.dump())
        if self._catalog_fields is not None:
            packer.pack(self._catalog_fields)
        packed: bytes = packer.bytes()
        return packed

    def digest_with(self, stored: StoreDigest) -> StateDigest:
        """Return the digest of this checkpoint, whose pairs in the store have the given one."""
        fields = self._pack(is_comparable=True)
        whole = blake2b(stored.hex.encode() + fields, digest_size=DIGEST_BYTES)
        return StateDigest(
            stored.hex, stored.keys, whole.digest(), self.meta_version + WITHOUT_TEXT
        )


class StateDigest(NamedTuple):
    """The digest of a checkpoint: of all pairs, and of the `whole`.

    The whole covers position, membership and sessions too, but for the messages of exceptions. Two
    replicas have the same one as of the same entry, unless their states differ, or the digests are
    of different formats.
    """

    hex: str
    keys: int
    whole: bytes
    form: int = META_VERSION + WITHOUT_TEXT


class NotYet(Exception):
    """The read would take long: call `State.prepare`, and try again later."""


class _Census:
    """Counts the buffered keys that the store has too, piece by piece.

    Lookups in one version of the store add up; `version` is None until the first lookup.
    """

    __slots__ = ("frozen", "pending", "present", "seen", "version")

    def __init__(self, frozen: dict[bytes, bytes | None]) -> None:
        self.version: int | None = None
        self.present = 0
        self.frozen = list(frozen)
        self.pending: list[bytes] = []
        self.seen = 0

    def __len__(self) -> int:
        """The largest number of keys that still need a lookup."""
        return len(self.frozen) + len(self.pending)

    def take_piece(
        self, frozen: dict[bytes, bytes | None], buffer: dict[bytes, bytes | None]
    ) -> list[bytes]:
        """Return the next keys to look up: more than were buffered since the last piece."""
        new, was_begun = len(buffer) - self.seen, self.version is not None and len(self) > 0
        self.pending += islice(reversed(buffer), new)
        self.seen = len(buffer)
        size = LOOKUP_PIECE + (new if was_begun else 0)
        piece = [key for key in self.pending[-size:] if key not in frozen]
        del self.pending[-size:]
        if len(piece) < size:
            rest = size - len(piece)
            piece += self.frozen[-rest:]
            del self.frozen[-rest:]
        return piece


class State:
    """The state machine of one node: built-in commands, and those of `machine` if given."""

    def __init__(self, store: Store, machine: StateMachine | None = None) -> None:
        self._store = store
        self.machine = machine
        self._buffer = WriteBuffer()
        self._frozen: WriteBuffer | None = None
        self._census: _Census | None = None
        self._is_counting = self._is_sorting = False
        self.applying: Entry | None = None
        """The entry that is being applied, or whose application has failed."""
        self.is_restoring = False
        """Whether only the meta counts: behind a RESTORE entry the pairs are others."""
        self.trying: tuple[Any, ...] | None = None
        """The unpacked call that is being tried (`raftha/node/trials.py`)."""
        self.skips: Mapping[int, bytes] = {}
        """Hashes of entries whose commands are passed over, by index; see `directory/skips.py`."""
        self._buffer_bytes = 0
        self.applied = LOG_START
        self.membership: bytes | None = None
        """The payload of the last membership entry that was applied."""
        self.versions: Versions | None = None
        """What the cluster uses; None until the first leader has recorded it."""
        self.catalog = Catalog()
        """The backups of this cluster."""
        self.abilities = abilities_of(machine)
        """What this node supports."""
        self._sessions = Sessions()
        meta = store.meta()
        if meta is not None:
            self._load(meta)
        self._frozen_at = self.applied.index
        """The last entry in the latest checkpoint, begun or loaded."""

    @property
    def buffer_bytes(self) -> int:
        """Memory of the changes since the last freeze, rounded up."""
        return self._buffer_bytes + _KEY_BYTES * len(self._buffer.values)

    @property
    def buffer_keys(self) -> int:
        """The number of keys written since the last freeze."""
        return len(self._buffer.values)

    @property
    def is_frozen(self) -> bool:
        """Whether a checkpoint is under way."""
        return self._frozen is not None

    @property
    def session_count(self) -> int:
        """The number of sessions."""
        return len(self._sessions)

    def check_supported(self, committed: Iterable[Entry] = ()) -> None:
        """Raise UpgradeRequired unless this node supports what the cluster uses.

        `committed` are entries that it is about to apply.
        """
        if self.versions is not None:
            self.abilities.check(self.versions)
        for entry in committed:
            if entry.kind == EntryKind.ADMIN:
                what, fields = decode_admin(bytes(entry.payload))
                if what == VERSIONS:
                    self.abilities.check(load_versions(fields))
                else:
                    decode_change(what, fields)
            elif entry.kind == EntryKind.RESTORE:
                restore_of(entry)

    def apply(self, entry: Entry) -> list[Applied]:
        """Apply the next committed entry; return its groups' outcomes, in order.

        MemoryError, RecursionError, OSError, StorageError and UpgradeRequired leave this state
        incomplete for good: the node must stop, and start again from its last checkpoint. A RESTORE
        that is accepted isn't applied: see `restored.py`.
        """
        assert entry.index == self.applied.index + 1, "entries are applied in order, each once"
        assert entry.term >= self.applied.term, "terms never decrease along the log"
        assert entry.time_us >= self.applied.time_us, "log time never goes back"
        assert self.applying is None, "a fault while applying is final"
        self.applying = entry
        self._sessions.expire(entry.time_us)
        sequence = self.applied.last_sequence
        applied = []
        if entry.kind == EntryKind.BATCH:
            for place, group in enumerate(decode_groups(entry.payload)):
                outcome = self._apply_group(entry, group, place, sequence + 1)
                applied.append(Applied(group.session, group.number, outcome))
                sequence += group.count
        elif entry.kind == EntryKind.MEMBERSHIP:
            self.membership = bytes(entry.payload)
        elif entry.kind == EntryKind.ADMIN:
            self._apply_admin(entry)
        elif entry.kind == EntryKind.RESTORE:
            self._apply_restore(entry)
            sequence += 1
        elif entry.kind != EntryKind.NOOP:
            raise UpgradeRequired(f"this node doesn't know entries of kind {entry.kind}")
        assert sequence == entry.last_sequence, "an entry's groups have as many commands as it says"
        self._buffer.keep_sorted()
        self.applied = entry.position
        self.applying = None
        return applied

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if it doesn't exist.

        Any thread may call: it gets a value that was current at some moment of the call.
        """
        # Newer layers first, each once. A value that leaves a layer meanwhile moves to an older
        # one, which this method reads later.
        values = self._buffer.values
        if key in values:
            return values[key]
        frozen = self._frozen
        if frozen is not None and key in frozen.values:
            return frozen.values[key]
        return self._store.get(key)

    def scan(
        self,
        start: bytes | None = None,
        end: bytes | None = None,
        *,
        limit: int = 1000,
        reverse: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` pairs with keys in [start, end), None meaning unbounded, in order.

        InvalidRequest if `limit` is over 10,000 or the pairs exceed 16 MiB together. NotYet if many
        keys must be sorted first.
        """
        check_scan(start, end, limit)
        if any(layer.missing > SORT_PIECE for layer in self._layers()):
            self._is_sorting = True
            raise NotYet
        return collect(self.iterate(start, end, reverse=reverse, limit=limit), limit)

    def iterate(
        self, start: bytes | None, end: bytes | None, *, reverse: bool, limit: int = sys.maxsize
    ) -> Iterator[Pair]:
        """Yield the pairs in [start, end) in order, deleted ones as (key, None).

        About `limit` pairs are wanted; there may be more. The iterator must be exhausted before the
        next entry is applied.
        """
        pairs: Iterator[Pair] = chain.from_iterable(self._chunks(start, end, limit, reverse))
        for layer in (self._frozen, self._buffer):
            if layer is not None and layer.values:
                above = layer.iterate(start, end, reverse=reverse)
                pairs = overlay(above, pairs, reverse=reverse)
            elif layer is not None:
                layer.is_scanned = layer.is_kept_sorted = True
        return pairs

    def count(self) -> int:
        """Return how many keys there are, exactly.

        Looks up the keys buffered since the last call in the store, about a microsecond each.
        NotYet if there are many.
        """
        frozen = {} if self._frozen is None else self._frozen.values
        buffer = self._buffer.values
        stored = None
        while stored is None:
            if self._uncounted() > LOOKUP_PIECE:
                self._is_counting = True
                raise NotYet
            stored = self._look_up()
        visible = len(buffer) - list(buffer.values()).count(None)
        visible += len(frozen) - list(frozen.values()).count(None)
        if frozen and buffer:
            fewer, more = sorted((frozen.keys(), buffer.keys()), key=len)
            visible -= sum(key in more and frozen[key] is not None for key in fewer)
        return stored + visible

    def prepare(self) -> None:
        """Do a piece of the work that reads with `NotYet` wait for; takes a few milliseconds."""
        if self._is_sorting:
            unsorted = [layer for layer in self._layers() if layer.missing > SORT_PIECE]
            self._is_sorting = bool(unsorted)
            for layer in unsorted:
                layer.sort_piece()
        if self._is_counting:
            self._is_counting = self._look_up() is None

    def freeze(self) -> Frozen:
        """Begin a checkpoint of the current state, without later changes."""
        assert self._frozen is None, "one checkpoint at a time"
        assert self.applying is None, "a fault while applying is final"
        assert self.applied.index >= self._frozen_at, "a checkpoint never goes back"
        assert self._buffer.missing >= 0, "the ordered view has no key that the buffer lacks"
        self._frozen_at = self.applied.index
        self._frozen = self._buffer
        self._buffer = WriteBuffer(is_kept_sorted=self._frozen.is_scanned)
        self._buffer_bytes = 0
        self._census = None
        return self._frozen_as(SortedItems(self._frozen))

    def meta_now(self) -> bytes:
        """Return the meta that a checkpoint would have now."""
        return self._frozen_as(SortedItems(WriteBuffer())).meta

    def _frozen_as(self, items: SortedItems) -> Frozen:
        return Frozen(
            items,
            self.applied,
            self.membership,
            self._sessions.freeze(),
            self.versions,
            self.catalog.dump(has_recovery=self.has_recovery) if self.has_catalog else None,
        )

    def checkpoint_done(self) -> None:
        """Finish a checkpoint after the store has written the result of `freeze`."""
        assert self._frozen is not None, "a checkpoint ends after it began"
        self._frozen = None
        self._census = None

    @property
    def has_catalog(self) -> bool:
        """Whether the cluster uses a protocol that has a catalog of backups."""
        return self.versions is not None and self.versions.protocol >= catalog.PROTOCOL

    @property
    def has_recovery(self) -> bool:
        """Whether the cluster uses a protocol with an archive of the log, and recovery from it."""
        return self.versions is not None and self.versions.protocol >= catalog.RECOVERY_PROTOCOL

    def _apply_admin(self, entry: Entry) -> None:
        what, fields = decode_admin(bytes(entry.payload))
        if what == VERSIONS:
            self._raise_versions(load_versions(fields))
            return
        change = decode_change(what, fields)
        if isinstance(change, Restore):
            raise UpgradeRequired(f"entry {entry.index} restores, and is not of that kind")
        is_new = isinstance(change, catalog.NotePoint | RecoveryChange)
        is_known = self.has_recovery if is_new else self.has_catalog
        assert is_known, "changes of the catalog wait for all members to know them"
        self.catalog.apply(change, entry.position)

    def _apply_restore(self, entry: Entry) -> None:
        """Apply a RESTORE that is refused, or only the meta of one that is accepted."""
        assert self.has_recovery, "recoveries wait for all members to know them"
        self.catalog.apply(restore_of(entry), entry.position)
        is_refused = bool(self.catalog.verdict.refusal)
        assert is_refused or self.is_restoring, "behind a RESTORE the pairs are others"

    def _raise_versions(self, raised: Versions) -> None:
        """The cluster uses these from here on, and what it used before."""
        if self.versions is not None:
            raised = self.versions.raised(raised)
        self.abilities.check(raised)
        self.versions = raised

    def _apply_group(self, entry: Entry, group: Group, place: int, first_sequence: int) -> Outcome:
        position = (first_sequence, entry.index, entry.term, entry.time_us, group.count)
        if group.session == 0:
            assert place < GROUPS_MAX, "a group's place in its entry has 16 bits"
            assert group.count == 0, "a group that opens a session has no commands"
            session = self._sessions.new_id(entry.hash, place)
            self._sessions.open(session, entry.time_us, group.commands)
            return Outcome(*position, session=session)
        refusal = self._sessions.admit(group, entry, first_sequence)
        if refusal is not None:
            return refusal
        commands = None
        if group.count <= ARRAY_MAX:
            commands = unpack_commands(group.commands, group.count)
        results: list[Result | None] | None
        if self.skips and self.skips.get(entry.index) == entry.hash:
            results = [(FAILED, "Skipped", f"an operator skipped entry {entry.index}")]
            results *= group.count
        elif commands is None:
            results = [(FAILED, "InvalidRequest", "the group can't be parsed")] * group.count
        else:
            self._buffer_bytes += len(group.commands)
            results = self._run_commands(commands, entry.time_us, first_sequence)
        outcome = Outcome(*position, results)
        self._sessions.record(group, outcome)
        return outcome

    def _run_commands(
        self, commands: tuple[Any, ...], time_us: int, first_sequence: int
    ) -> list[Result | None] | None:
        """Run a group's commands in order; None if all results are None.

        The hot path: plain puts go straight into the buffer, after the checks that keep out what
        LMDB would refuse. (A `match` statement here takes ten times as long.)
        """
        values = self._buffer.values
        results: list[Result | None] | None = None
        for place, command in enumerate(commands):
            if type(command) is tuple and len(command) == 3 and command[0] == PUT:
                _, key, value = command
                if (
                    type(key) is bytes
                    and type(value) is bytes
                    and 0 < len(key) <= KEY_BYTES_MAX
                    and len(value) <= VALUE_BYTES_MAX
                ):
                    values[key] = value
                    continue
            txn = Transaction(self, time_us, first_sequence + place, self.versions)
            result = run(command, txn, self.machine)
            written = txn.finish()
            if result is None or result[0] != FAILED:
                values.update(written)
                self._buffer_bytes += txn.write_bytes
            if result is not None:
                if results is None:
                    results = [None] * len(commands)
                results[place] = result
        return results

    def _chunks(
        self, start: bytes | None, end: bytes | None, limit: int, reverse: bool
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield the store's pairs in [start, end), many at a time, of which `limit` are wanted."""
        sizes = iter(_CHUNKS)
        size = _CHUNKS[-1]
        while True:
            size = next(sizes, size)
            # More than are wanted are needed only if newer layers have deleted some.
            pairs = self._store.scan(
                start, end, limit=min(size, max(limit, _CHUNKS[0])), reverse=reverse
            )
            if not pairs:
                return
            limit -= len(pairs)
            yield pairs
            if reverse:
                end = pairs[-1][0]
            else:
                start = pairs[-1][0] + b"\0"

    def _layers(self) -> list[WriteBuffer]:
        return [self._buffer] if self._frozen is None else [self._frozen, self._buffer]

    def _uncounted(self) -> int:
        """The largest number of buffered keys that `count` has to look up."""
        if self._census is not None:
            return len(self._census) + len(self._buffer.values) - self._census.seen
        return sum(len(layer.values) for layer in self._layers())

    def _look_up(self) -> int | None:
        """Look up the next piece; return the number of keys that only the store has, once known.

        A new version of the store, which the storage thread may make at any moment, starts over.
        """
        frozen = {} if self._frozen is None else self._frozen.values
        if self._census is None:
            self._census = _Census(frozen)
        census = self._census
        piece = census.take_piece(frozen, self._buffer.values)
        version, entries, present = self._store.census(piece)
        if census.version not in (None, version):
            self._census = None
            return None
        census.version = version
        census.present += present
        return None if len(census) else entries - census.present

    def _load(self, meta: bytes) -> None:
        if len(meta) < 4 or zlib.crc32(meta[4:]).to_bytes(4, "little") != meta[:4]:
            raise self._store.corrupt("the checkpoint's meta is damaged")
        try:
            version, *fields = msgpack.unpackb(meta[4:], raw=False)
            if version not in (META_BEFORE, META_WITH_CATALOG, META_VERSION):
                raise ConfigError(
                    f"the state is in format {version}; this raftha reads {META_VERSION}",
                    hint="use the version of raftha that wrote it; nothing is lost",
                )
            if version != META_BEFORE:
                self.catalog = Catalog.load(fields.pop())
            applied, self.membership, sessions, versions = fields
            self.applied, self._sessions = LogPosition(*applied), Sessions.load(sessions)
            self.versions = None if versions is None else Versions.load(versions)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise self._store.corrupt(f"the checkpoint's meta can't be read: {error}") from error


def restore_of(entry: Entry) -> Restore:
    """Return what a RESTORE entry says. UpgradeRequired if this version doesn't know it."""
    change = decode_change(*decode_admin(bytes(entry.payload)))
    if not isinstance(change, Restore):
        raise UpgradeRequired(f"entry {entry.index} is of kind RESTORE, and restores nothing")
    return change
