"""The manifest of a backup: written last, it says what the backup is, and of which objects.

A manifest is an object of frames (kind 2) whose content is JSON. From its bytes on a backup exists.
It may come from a bucket that others write to, so every field is checked, also against the name
under which it lies:

    format           1
    repository       id of the repository
    lineage          the history that the backup belongs to
    id, label        index of the entry that began it; its folder's name
    mode             full, incremental or differential
    parent, base     labels: of the backup that a restore needs before this one, and of the full one
                     at the end of its chain; "" and its own label for a full one
    parent_sha256    SHA-256 of the parent's manifest as stored; "" for a full one
    position         [index, term, time_us, last sequence, hash] of the state that it leads to
    start            the delta holds all changes after this entry; at most the parent's position
    membership       payload of the last MEMBERSHIP entry applied, as hex digits
    first_run        the number in the name of its first object: more than 0 if it was begun again
    runs             of each object, in order: [size, sha256, raw bytes, keys, first key, last key,
                     offset of the index, number of the index's first frame]; keys as hex digits
    digest           of the state at the position, as `Hasher` makes it; "" if it isn't known
    node             id of the node that took it
    raftha_version   version of raftha, and of the class of the state machine with its commands:
    machine, commands
    started_us, finished_us    by the log's time and the node's clock
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from raftha.entry import HASH_BYTES, LogPosition
from raftha.errors import BackupDamaged, ObjectTooLarge, RepositoryError
from raftha.storage.backup import names
from raftha.storage.backup.crypto import ID_BYTES, DataKey, KeyRing
from raftha.storage.backup.destination import OBJECT_BYTES_MAX, Destination
from raftha.storage.backup.documents import hex_of, number_of, parse_json, text_of
from raftha.storage.backup.frames import MANIFEST, read_whole, write_whole
from raftha.storage.backup.runs import ObjectFacts

FORMAT = 1
MANIFEST_BYTES_MAX = 32 << 20
"""A manifest's content, at most: that of 10,000 objects with the longest keys fits."""
LEVEL = 3
"""How hard a manifest is compressed, because one of many objects is large."""
FULL, INCREMENTAL, DIFFERENTIAL = "full", "incremental", "differential"
LETTERS = {FULL: "F", INCREMENTAL: "I", DIFFERENTIAL: "D"}
COMMANDS_MAX = 10_000
_NUMBER_MAX = (1 << 63) - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"(?:[0-9a-f]{2}){0,511}")
_MEMBERSHIP_CHARS_MAX = 1 << 20
_NAME_CHARS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup is. The module's docstring describes the fields."""

    repository: str
    lineage: str
    id: int
    label: str
    mode: str
    parent_label: str = ""
    parent_sha256: str = ""
    base_label: str
    first_run: int = 0
    position: LogPosition
    start: int = 0
    membership: bytes = b""
    runs: tuple[ObjectFacts, ...]
    digest: str = ""
    node: int
    raftha_version: str
    machine: str = ""
    commands: tuple[str, ...] = ()
    started_us: int
    finished_us: int

    @property
    def is_full(self) -> bool:
        """Whether it needs no other backup."""
        return self.mode == FULL

    @property
    def parent(self) -> int:
        """The id of its parent; 0 for a full one."""
        return names.parse_label(self.parent_label).begin_index if self.parent_label else 0

    @property
    def base(self) -> int:
        """The id of the full backup at the end of its chain."""
        return names.parse_label(self.base_label).begin_index

    @property
    def keys(self) -> int:
        """The number of its pairs, deleted keys included."""
        return sum(run.keys for run in self.runs)

    @property
    def size_bytes(self) -> int:
        """Its size before compression."""
        return sum(run.raw_bytes for run in self.runs)

    @property
    def size_compressed(self) -> int:
        """The size of its objects."""
        return sum(run.size for run in self.runs)

    def run_name(self, number: int) -> str:
        """The name of an object of its run."""
        return names.run_name(self.lineage, self.label, self.first_run + number)


class StoredManifest(NamedTuple):
    """A manifest, and the SHA-256 of the object that it was read from."""

    manifest: Manifest
    sha256: str


def encode_manifest(manifest: Manifest, key: DataKey | None, *, salt: bytes | None = None) -> bytes:
    """Return the manifest's object."""
    position = manifest.position
    document = {
        "format": FORMAT,
        "repository": manifest.repository,
        "lineage": manifest.lineage,
        "id": manifest.id,
        "label": manifest.label,
        "mode": manifest.mode,
        "parent": manifest.parent_label,
        "parent_sha256": manifest.parent_sha256,
        "base": manifest.base_label,
        "position": [*position[:4], position.hash.hex()],
        "start": manifest.start,
        "membership": manifest.membership.hex(),
        "first_run": manifest.first_run,
        "runs": [
            [*run[:4], run.first_key.hex(), run.last_key.hex(), *run[6:]] for run in manifest.runs
        ],
        "digest": manifest.digest,
        "node": manifest.node,
        "raftha_version": manifest.raftha_version,
        "machine": manifest.machine,
        "commands": list(manifest.commands),
        "started_us": manifest.started_us,
        "finished_us": manifest.finished_us,
    }
    raw = json.dumps(document, separators=(",", ":")).encode()
    name = names.manifest_name(manifest.lineage, manifest.label)
    return write_whole(raw, MANIFEST, name, key, LEVEL, salt=salt)


def decode_manifest(
    data: bytes | memoryview, lineage: str, label: str, repository: str, keys: KeyRing
) -> Manifest:
    """Read a manifest that lies under this lineage and label. BackupDamaged; KeyMissing."""
    name = names.manifest_name(lineage, label)
    raw = read_whole(data, MANIFEST, name, keys, size_max=MANIFEST_BYTES_MAX)
    try:
        found = parse_json(raw, MANIFEST_BYTES_MAX)
        version = number_of(found, "format", 1, 1 << 31)
        if version > FORMAT:
            raise RepositoryError(
                f"its format is {version}; this raftha reads {FORMAT}",
                object_name=name,
                hint="use a newer version of raftha",
            )
        manifest = _decode(found)
        _check(manifest)
        if (manifest.repository, manifest.lineage, manifest.label) != (repository, lineage, label):
            raise ValueError("it belongs to another repository, lineage or backup")
    except ValueError as error:
        raise BackupDamaged(str(error), object_name=name) from error
    return manifest


def load_manifest(
    destination: Destination, lineage: str, label: str, repository: str, keys: KeyRing
) -> StoredManifest:
    """Read a backup's manifest from a destination. ObjectMissing; BackupDamaged; KeyMissing."""
    name = names.manifest_name(lineage, label)
    try:
        data = destination.get(name, size_max=OBJECT_BYTES_MAX)
    except ObjectTooLarge as error:
        raise BackupDamaged(
            "it is too large", destination=destination.name, object_name=name
        ) from error
    manifest = decode_manifest(data, lineage, label, repository, keys)
    return StoredManifest(manifest, sha256(data).hexdigest())


def _decode(found: Mapping[str, Any]) -> Manifest:
    return Manifest(
        repository=hex_of(found, "repository", ID_BYTES).hex(),
        lineage=hex_of(found, "lineage", ID_BYTES).hex(),
        id=number_of(found, "id", 1, _NUMBER_MAX),
        label=text_of(found, "label"),
        mode=text_of(found, "mode"),
        parent_label=text_of(found, "parent"),
        parent_sha256=text_of(found, "parent_sha256"),
        base_label=text_of(found, "base"),
        position=_position(found.get("position")),
        start=number_of(found, "start", 0, _NUMBER_MAX),
        membership=bytes.fromhex(text_of(found, "membership", _MEMBERSHIP_CHARS_MAX)),
        first_run=number_of(found, "first_run", 0, names.RUNS_MAX - 1),
        runs=_runs(found.get("runs")),
        digest=text_of(found, "digest"),
        node=number_of(found, "node", 0, _NUMBER_MAX),
        raftha_version=text_of(found, "raftha_version"),
        machine=text_of(found, "machine"),
        commands=_commands(found.get("commands")),
        started_us=number_of(found, "started_us", 0, _NUMBER_MAX),
        finished_us=number_of(found, "finished_us", 0, _NUMBER_MAX),
    )


def _position(found: Any) -> LogPosition:
    if type(found) is not list or len(found) != 5:
        raise ValueError("position is not a position")
    fields = dict(zip(("index", "term", "time_us", "last_sequence", "hash"), found, strict=True))
    index, term, time_us, sequence = (
        number_of(fields, name, 0, _NUMBER_MAX) for name in list(fields)[:4]
    )
    return LogPosition(index, term, time_us, sequence, hex_of(fields, "hash", HASH_BYTES))


def _runs(found: Any) -> tuple[ObjectFacts, ...]:
    if type(found) is not list or not 0 < len(found) <= names.RUNS_MAX:
        raise ValueError(f"a backup has 1 to {names.RUNS_MAX} objects")
    runs = tuple(map(_run, found))
    last_key = b""
    for run in runs:
        if run.keys and not last_key < run.first_key <= run.last_key:
            raise ValueError("the keys of its objects are not in order")
        last_key = run.last_key or last_key
    return runs


def _run(found: Any) -> ObjectFacts:
    if type(found) is not list or len(found) != len(ObjectFacts._fields):
        raise ValueError("an object of a run is not described")
    fields = dict(zip(ObjectFacts._fields, found, strict=True))
    first_key, last_key = (text_of(fields, name, 1022) for name in ("first_key", "last_key"))
    keys = number_of(fields, "keys", 0, _NUMBER_MAX)
    if not _KEY.fullmatch(first_key) or not _KEY.fullmatch(last_key):
        raise ValueError("a key is not given as hex digits")
    if not bool(keys) == bool(first_key) == bool(last_key):
        raise ValueError("an object has keys, or it has none")
    digest = text_of(fields, "sha256")
    if not _SHA256.fullmatch(digest):
        raise ValueError("sha256 is not a hash")
    return ObjectFacts(
        number_of(fields, "size", 1, OBJECT_BYTES_MAX),
        digest,
        number_of(fields, "raw_bytes", 0, _NUMBER_MAX),
        keys,
        bytes.fromhex(first_key),
        bytes.fromhex(last_key),
        number_of(fields, "index_at", 1, OBJECT_BYTES_MAX),
        number_of(fields, "index_number", 1, OBJECT_BYTES_MAX),
    )


def _commands(found: Any) -> tuple[str, ...]:
    if type(found) is not list or len(found) > COMMANDS_MAX:
        raise ValueError("commands are not a list of names")
    if not all(type(name) is str and len(name) <= _NAME_CHARS_MAX for name in found):
        raise ValueError("commands are not a list of names")
    return tuple(found)


def _check(manifest: Manifest) -> None:
    """ValueError unless the fields agree with each other."""
    label = names.parse_label(manifest.label)
    if manifest.mode not in LETTERS or LETTERS[manifest.mode] != label.mode:
        raise ValueError("mode and label differ")
    if label.begin_index != manifest.id:
        raise ValueError("id and label differ")
    if manifest.first_run + len(manifest.runs) > names.RUNS_MAX:
        raise ValueError("it has too many objects")
    if manifest.position.index < manifest.id:
        raise ValueError("its position is before its beginning")
    if manifest.digest and not _SHA256.fullmatch(manifest.digest):
        raise ValueError("digest is not a hash")
    if manifest.is_full:
        if (manifest.parent_label, manifest.parent_sha256, manifest.base_label, manifest.start) != (
            "",
            "",
            manifest.label,
            0,
        ):
            raise ValueError("a full backup has no parent")
        return
    parent, base = map(names.parse_label, (manifest.parent_label, manifest.base_label))
    if base.mode != "F" or not base.begin_index <= parent.begin_index < label.begin_index:
        raise ValueError("parent and base can't be those of this backup")
    if manifest.mode == DIFFERENTIAL and manifest.parent != manifest.base:
        raise ValueError("the parent of a differential backup is a full one")
    if not _SHA256.fullmatch(manifest.parent_sha256):
        raise ValueError("parent_sha256 is not a hash")
    if manifest.start >= manifest.position.index:
        raise ValueError("the delta ends before it begins")
