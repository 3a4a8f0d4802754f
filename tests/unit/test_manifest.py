"""The manifest: what is written is read back, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftha.entry import LogPosition
from raftha.errors import BackupDamaged, KeyMissing, RepositoryError
from raftha.storage.backup import manifest as manifest_module
from raftha.storage.backup.crypto import NO_KEYS, DataKey, KeyRing
from raftha.storage.backup.destination import OBJECT_BYTES_MAX
from raftha.storage.backup.frames import MANIFEST, read_whole, write_whole
from raftha.storage.backup.manifest import Manifest, decode_manifest, encode_manifest, load_manifest
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.names import label, manifest_name
from raftha.storage.backup.runs import ObjectFacts

LINEAGE, REPOSITORY = "ab" * 16, "cd" * 16
KEY = DataKey("ef" * 16, bytes(range(32)), 1)
BASE = label(1_700_000_000_000_000, "F", 90)
LABEL = label(1_790_000_000_000_000, "I", 100)
RUNS = (
    ObjectFacts(1000, "01" * 32, 5000, 20, b"a", b"f", 900, 3),
    ObjectFacts(800, "02" * 32, 4000, 10, b"g", b"\xff" * 511, 700, 2),
)
INCREMENTAL = Manifest(
    repository=REPOSITORY,
    lineage=LINEAGE,
    id=100,
    label=LABEL,
    mode="incremental",
    parent_label=BASE,
    parent_sha256="03" * 32,
    base_label=BASE,
    position=LogPosition(105, 3, 1_790_000_001_000_000, 77, bytes(range(16))),
    start=91,
    membership=b"members",
    runs=RUNS,
    digest="",
    node=2,
    raftha_version="1.2.3",
    machine="Bank",
    commands=("deposit", "withdraw"),
    started_us=1,
    finished_us=2,
)
FULL = dataclasses.replace(
    INCREMENTAL,
    id=90,
    label=BASE,
    mode="full",
    parent_label="",
    parent_sha256="",
    start=0,
    digest="04" * 32,
)
NAME = manifest_name(LINEAGE, LABEL)


def decode(data: bytes, keys: KeyRing = NO_KEYS) -> Manifest:
    return decode_manifest(data, LINEAGE, LABEL, REPOSITORY, keys)


def changed(**fields: Any) -> bytes:
    """The incremental one's object, with other fields."""
    raw = read_whole(encode_manifest(INCREMENTAL, None), 2, NAME, NO_KEYS)
    document = json.loads(raw) | fields
    return write_whole(json.dumps(document).encode(), MANIFEST, NAME, None, 0)


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_manifest_is_read_back(is_encrypted: bool) -> None:
    key, keys = (KEY, KeyRing([KEY])) if is_encrypted else (None, NO_KEYS)
    data = encode_manifest(INCREMENTAL, key)
    assert decode(data, keys) == INCREMENTAL
    full = encode_manifest(FULL, key)
    assert decode_manifest(full, LINEAGE, BASE, REPOSITORY, keys) == FULL


def test_the_sums_are_those_of_its_objects() -> None:
    found = INCREMENTAL
    assert (found.parent, found.base, FULL.parent, FULL.base) == (90, 90, 0, 90)
    assert (found.keys, found.size_bytes, found.size_compressed) == (30, 9000, 1800)
    assert found.run_name(1) == f"{LINEAGE}/backups/{LABEL}/run-0001"


def test_a_manifest_of_the_largest_backup_has_room() -> None:
    random = Random(1)
    keys = sorted(random.randbytes(511) for _ in range(20_000))
    runs = tuple(
        ObjectFacts(1 << 24, random.randbytes(32).hex(), 1, 1, first, last, 1, 1)
        for first, last in zip(keys[::2], keys[1::2], strict=True)
    )
    largest = dataclasses.replace(INCREMENTAL, runs=runs)
    assert decode(encode_manifest(largest, None)) == largest
    data = encode_manifest(largest, None)
    assert len(data) < OBJECT_BYTES_MAX


def test_a_manifest_is_loaded_with_the_hash_of_its_object() -> None:
    destination = MemoryDestination()
    destination.create(NAME, encode_manifest(INCREMENTAL, None))
    stored = load_manifest(destination, LINEAGE, LABEL, REPOSITORY, NO_KEYS)
    assert stored.manifest == INCREMENTAL
    assert len(stored.sha256) == 64
    big = MemoryDestination()
    big.create(NAME, bytes(18 << 20))
    with pytest.raises(BackupDamaged, match="too large"):
        load_manifest(big, LINEAGE, LABEL, REPOSITORY, NO_KEYS)


def test_a_manifest_counts_only_under_its_own_name() -> None:
    data = encode_manifest(INCREMENTAL, None)
    with pytest.raises(BackupDamaged):
        decode_manifest(data, "ba" * 16, LABEL, REPOSITORY, NO_KEYS)
    with pytest.raises(BackupDamaged, match="another repository"):
        decode_manifest(data, LINEAGE, LABEL, "dc" * 16, NO_KEYS)
    with pytest.raises(BackupDamaged, match="another repository, lineage"):
        decode(changed(lineage="ba" * 16))


def test_a_wrong_key_does_not_open_a_manifest() -> None:
    data = encode_manifest(INCREMENTAL, KEY)
    with pytest.raises(KeyMissing):
        decode(data)
    with pytest.raises(BackupDamaged):
        decode(data, KeyRing([DataKey(KEY.key_id, bytes(32), 1)]))


def test_a_later_format_asks_for_a_newer_version() -> None:
    with pytest.raises(RepositoryError, match="newer version"):
        decode(changed(format=2))


RUN = [1000, "01" * 32, 5000, 20, "61", "62", 900, 3]


@pytest.mark.parametrize(
    "fields",
    [
        {"id": 101},
        {"id": -1},
        {"id": True},
        {"label": BASE},
        {"label": "../x"},
        {"mode": "full"},
        {"mode": "differential"},
        {"mode": "other"},
        {"parent": ""},
        {"parent": LABEL},
        {"parent": "../../etc"},
        {"parent_sha256": "zz"},
        {"base": label(1_700_000_000_000_000, "I", 80)},
        {"base": label(1_700_000_000_000_000, "F", 95)},
        {"position": [105, 3, 1, 77]},
        {"position": [99, 3, 1, 77, "00" * 16]},
        {"position": [105, 3, 1, 77, "00"]},
        {"position": [105.0, 3, 1, 77, "00" * 16]},
        {"position": None},
        {"start": 105},
        {"start": -1},
        {"membership": "xyz"},
        {"membership": 7},
        {"runs": []},
        {"first_run": 9999},
        {"first_run": -1},
        {"runs": [RUN] * 10_001},
        {"runs": [RUN, RUN]},
        {"runs": [RUN[:-1]]},
        {"runs": [7]},
        {"runs": [[18 << 20, *RUN[1:]]]},
        {"runs": [[1, "zz", *RUN[2:]]]},
        {"runs": [[*RUN[:3], 0, *RUN[4:]]]},
        {"runs": [[*RUN[:4], "6", "62", 900, 3]]},
        {"runs": [[*RUN[:4], "61", "", 900, 3]]},
        {"runs": [[*RUN[:4], "62", "61", 900, 3]]},
        {"runs": [[*RUN[:4], "61" * 512, "62" * 512, 900, 3]]},
        {"runs": [[*RUN[:6], 1 << 60, 3]]},
        {"digest": "12"},
        {"digest": None},
        {"node": "1"},
        {"commands": ["x" * 201]},
        {"commands": ["x"] * 10_001},
        {"commands": "x"},
        {"started_us": 1 << 63},
        {"repository": "CD" * 16},
    ],
)
def test_fields_that_can_not_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BackupDamaged):
        decode(changed(**fields))


@pytest.mark.parametrize(
    "fields",
    [{"parent_label": BASE}, {"base_label": LABEL}, {"start": 1}, {"parent_sha256": "03" * 32}],
)
def test_a_full_backup_with_a_parent_is_refused(fields: dict[str, Any]) -> None:
    data = encode_manifest(dataclasses.replace(FULL, **fields), None)
    with pytest.raises(BackupDamaged):
        decode_manifest(data, LINEAGE, BASE, REPOSITORY, NO_KEYS)


def test_a_field_that_is_missing_is_refused() -> None:
    raw = read_whole(encode_manifest(INCREMENTAL, None), 2, NAME, NO_KEYS)
    document = json.loads(raw)
    for field in document:
        fewer = {name: value for name, value in document.items() if name != field}
        with pytest.raises(BackupDamaged):
            decode(write_whole(json.dumps(fewer).encode(), MANIFEST, NAME, None, 0))


def test_content_without_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MANIFEST_BYTES_MAX", 1 << 20)
    with pytest.raises(BackupDamaged, match="more than"):
        decode(write_whole(bytes(2 << 20), MANIFEST, NAME, None, 3))
    with pytest.raises(BackupDamaged):
        decode(write_whole(b"[" * 500_000, MANIFEST, NAME, None, 3))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(data=st.data(), value=values)
def test_no_value_of_any_field_is_more_than_damage(data: st.DataObject, value: Any) -> None:
    raw = read_whole(encode_manifest(INCREMENTAL, None), 2, NAME, NO_KEYS)
    field = data.draw(st.sampled_from(sorted(json.loads(raw))))
    try:
        found = decode(changed(**{field: value}))
    except RepositoryError:
        return
    for each in dataclasses.fields(Manifest):
        assert type(getattr(found, each.name)) is type(getattr(INCREMENTAL, each.name))
