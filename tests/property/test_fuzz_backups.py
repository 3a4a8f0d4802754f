"""A hostile bucket: whatever its names and bytes are, reading them ends in raftha's errors.

Nothing is written outside the folder of a destination, and no claim in an object reserves memory.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raftha.errors import BackupDamaged, KeyMissing, RepositoryError
from raftha.storage.backup import names
from raftha.storage.backup.crypto import NO_KEYS, DataKey, KeyRing, OperatorKey, WrappedKey, wrap
from raftha.storage.backup.destination import ObjectInfo
from raftha.storage.backup.frames import OTHER, read_frames, write_whole
from raftha.storage.backup.local import LocalDestination
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.repository import open_repository
from raftha.storage.backup.repository_records import LineageRecord, RepositoryRecord
from tests.property.test_fuzz import VALUES, little_memory

pytestmark = pytest.mark.slow

KEY = DataKey("0f" * 16, bytes(32), 1)
OPERATOR = OperatorKey(bytes(32))
NAME = "7f/backups/x/run-0000"
RAW = b"".join(b"key %06d value " % number for number in range(30_000))
OBJECTS = {key: write_whole(RAW, OTHER, NAME, key, 1, salt=bytes(16)) for key in (None, KEY)}
PATHS = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["..", ".", "", "a", "~", "/", "etc", ".draft-0", "run-0000", "\0", "x" * 200]
        ),
        max_size=8,
    ).map("/".join),
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "remove", "repeat", "cut"]),
        st.integers(0, 1 << 20),
        st.binary(max_size=40),
        st.integers(0, 300_000),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[str, int, bytes, int]]) -> bytes:
    """`data` as someone who can write to the bucket may leave it."""
    for kind, where, piece, count in edits:
        at = where % (len(data) + 1)
        if kind == "set":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "remove":
            data = data[:at] + data[at + count :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + count] + data[at:]
        else:
            data = data[:at]
    return data


@given(st.sampled_from([None, KEY]), EDITS)
def test_an_edited_object_is_damaged(
    key: DataKey | None, edits: list[tuple[str, int, bytes, int]]
) -> None:
    data = edited(OBJECTS[key], edits)
    keys = KeyRing([KEY]) if key else NO_KEYS
    if data == OBJECTS[key]:
        return
    with little_memory(), pytest.raises((BackupDamaged, KeyMissing)):
        for _ in read_frames(data, OTHER, NAME, keys):
            pass


def wrapped(document: dict[str, Any]) -> None:
    """Read and open a key file."""
    with contextlib.suppress(ValueError, KeyMissing):
        KeyRing.open(OPERATOR, [WrappedKey.decode(json.dumps(document).encode())])


def recorded(document: dict[str, Any]) -> None:
    with contextlib.suppress(RepositoryError):
        RepositoryRecord.decode(json.dumps(document).encode(), "offsite")


def described(document: dict[str, Any]) -> None:
    with contextlib.suppress(RepositoryError):
        name = names.lineage_name("7f" * 16)
        LineageRecord.decode(json.dumps(document).encode(), "offsite", name)


RECORD = RepositoryRecord(repository_id="ab" * 16, is_encrypted=True, created_us=1)
LINEAGE = LineageRecord(
    lineage="7f" * 16,
    parent="6f" * 16,
    fork_index=1,
    fork_sequence=1,
    fork_hash="00",
    reason="restored",
    cluster_name="orders",
    created_us=5,
)
DOCUMENTS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], None]]] = [
    (json.loads(wrap(KEY, OPERATOR, "ab" * 16, 1, 1).encode()), wrapped),
    (json.loads(RECORD.encode()), recorded),
    (json.loads(LINEAGE.encode()), described),
]
FIELDS = sorted({field for document, _ in DOCUMENTS for field in document} - {"scrypt_n"})
JSON_VALUES = VALUES.filter(lambda value: not _has_bytes(value)) | st.sampled_from(
    ["00" * 16, "00" * 32, "zz" * 16, "none", "scrypt", -1, 1 << 70, 2, "٣" * 32]
)


def _has_bytes(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_bytes, value.values()))
    return isinstance(value, bytes) or (isinstance(value, list) and any(map(_has_bytes, value)))


@given(
    st.sampled_from(range(len(DOCUMENTS))), st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES)
)
def test_a_document_with_any_fields_is_read_or_refused(
    number: int, changes: dict[str, Any]
) -> None:
    document, read = DOCUMENTS[number]
    with little_memory():
        read(document | changes)


@given(st.binary(max_size=300) | st.sampled_from([b"[" * 4000, b'{"a":' * 800, b"1" * 4000]))
def test_any_bytes_are_no_document(data: bytes) -> None:
    with little_memory():
        with pytest.raises(RepositoryError):
            RepositoryRecord.decode(data, "offsite")
        with pytest.raises(ValueError, match=r"JSON|bytes|format"):
            WrappedKey.decode(data)


@given(PATHS)
@example("../outside")
@example("a/../../outside")
@example("/tmp/outside")
def test_nothing_is_written_outside_the_folder(path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "backups"
        destination = LocalDestination("local", root)
        try:
            destination.create(path, b"content")
        except ValueError:
            assert not names.is_name(path)
        else:
            assert [each.name for each in destination.list("")] == [path]
            assert destination.get(path, size_max=10) == b"content"
        with contextlib.suppress(ValueError):
            destination.delete(path)
        assert [path.name for path in Path(folder).rglob("*")] in (["backups"], [])


class Hostile(MemoryDestination):
    """A store that lists names as it likes, and has content for all of them."""

    def __init__(self, listed: list[str], content: bytes) -> None:
        super().__init__("hostile")
        self.listed = listed
        self.content = content
        self.read: list[str] = []

    def list(self, prefix: str) -> list[ObjectInfo]:
        return [*super().list(prefix), *(ObjectInfo(name, 5, 0) for name in self.listed)]

    def get(self, name: str, *, size_max: int) -> bytes:
        self.read.append(name)
        return super().get(name, size_max=size_max) if name not in self.listed else self.content


LISTED = st.one_of(
    PATHS,
    PATHS.map(lambda path: f"keys/{path}"),
    PATHS.map(lambda path: f"lineages/{path}"),
    st.sampled_from(["keys/" + "ab" * 16 + "-1.json", "lineages/" + "ab" * 16 + ".json"]),
)


@given(st.lists(LISTED, max_size=10), st.binary(max_size=50), st.booleans())
def test_a_repository_reads_no_names_but_its_own(
    listed: list[str], content: bytes, is_encrypted: bool
) -> None:
    store = Hostile(listed, content)
    with contextlib.suppress(RepositoryError):
        repository = open_repository(
            [store],
            operator=OPERATOR if is_encrypted else None,
            may_create=True,
            now_us=1,
        )
        repository.read_lineages()
    assert all(map(names.is_name, store.read))
