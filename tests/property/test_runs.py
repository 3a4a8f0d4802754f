"""Runs: what is written is read back, whatever its size; what was changed is refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from random import Random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftha.errors import BackupDamaged, KeyMissing
from raftha.storage.backup import runs
from raftha.storage.backup.crypto import NO_KEYS, DataKey, KeyRing
from raftha.storage.backup.frames import HEADER_BYTES, RUN, ObjectSeal, write_whole
from raftha.storage.backup.pairs import cut_blocks, in_pieces
from raftha.storage.backup.pool import Pool, SerialPool
from raftha.storage.backup.runs import (
    MetaParts,
    ObjectFacts,
    RunObject,
    read_index,
    read_run,
    write_run,
)
from raftha.storage.state.blocks import Pair
from raftha.storage.state.store import Hasher

KEY = DataKey("ab" * 16, bytes(range(32)), 1)
KEYS = KeyRing([KEY])


def written(
    pairs: list[Pair],
    meta: bytes = b"meta",
    *,
    key: DataKey | None = None,
    level: int = 3,
    pool: Pool | None = None,
    object_bytes: int = runs.OBJECT_BYTES,
) -> list[RunObject]:
    return list(
        write_run(
            cut_blocks(in_pieces(pairs)),
            meta,
            "run-{:04}".format,
            key=key,
            level=level,
            pool=pool or SerialPool(),
            object_bytes=object_bytes,
            salt=lambda: bytes(16) if key is None else None,
        )
    )


def read(objects: list[RunObject], keys: KeyRing = NO_KEYS) -> tuple[bytes, list[Pair]]:
    meta = MetaParts()
    pairs = [pair for piece in read_run(objects_of(objects), keys, meta.add) for pair in piece]
    return meta.join(), pairs


def objects_of(objects: list[RunObject]) -> Iterator[tuple[str, bytes, ObjectFacts]]:
    return ((found.name, found.data, found.facts) for found in objects)


@settings(deadline=None)
@given(
    run=st.dictionaries(
        st.binary(min_size=1, max_size=20), st.none() | st.binary(max_size=900), max_size=60
    ),
    meta=st.binary(max_size=3000),
    is_encrypted=st.booleans(),
    level=st.integers(0, 5),
    spare=st.integers(1, 9000),
)
def test_a_run_gives_back_what_was_written(
    run: dict[bytes, bytes | None], meta: bytes, is_encrypted: bool, level: int, spare: int
) -> None:
    pairs = sorted(run.items())
    object_bytes = runs.SPARE_BYTES + spare
    key = KEY if is_encrypted else None
    objects = written(pairs, meta, key=key, level=level, object_bytes=object_bytes)
    assert read(objects, KEYS if is_encrypted else NO_KEYS) == (meta, pairs)
    assert [found.name for found in objects] == [f"run-{i:04}" for i in range(len(objects))]
    assert sum(found.facts.keys for found in objects) == len(pairs)


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_large_run_has_several_objects_within_their_limit(is_encrypted: bool) -> None:
    random = Random(1)
    pairs: list[Pair] = [(b"%07d" % i, random.randbytes(3000)) for i in range(3000)]
    pairs[7] = (pairs[7][0], random.randbytes(4 << 20))
    pairs[9] = (pairs[9][0], b"")
    pairs[11] = (pairs[11][0], None)
    key = KEY if is_encrypted else None
    objects = written(pairs, random.randbytes(700_000), key=key, object_bytes=6 << 20)
    assert len(objects) >= 3
    assert all(found.facts.size == len(found.data) <= 6 << 20 for found in objects)
    assert read(objects, KEYS if is_encrypted else NO_KEYS)[1] == pairs


def test_threads_make_the_same_objects_as_one() -> None:
    pairs: list[Pair] = [(b"%07d" % i, bytes(i % 700)) for i in range(40_000)]
    serial = written(pairs, object_bytes=runs.SPARE_BYTES + 30_000)
    with ThreadPoolExecutor(3) as pool:
        threaded = written(pairs, object_bytes=runs.SPARE_BYTES + 30_000, pool=pool)
    assert len(serial) > 3
    assert serial == threaded


def test_an_empty_state_has_an_object_all_the_same() -> None:
    (only,) = written([], b"")
    assert only.facts[2:6] == (0, 0, b"", b"")
    assert read([only]) == (b"", [])


def test_what_compresses_well_ends_an_object_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "OBJECT_RAW_BYTES", 1 << 20)
    pairs: list[Pair] = [(b"%07d" % i, bytes(1000)) for i in range(5000)]
    objects = written(pairs)
    assert len(objects) == 5
    assert read(objects)[1] == pairs


def test_the_blocks_are_what_the_digest_hashes() -> None:
    pairs: list[Pair] = [(b"%07d" % i, bytes(i % 300)) for i in range(5000)]
    expected, found = Hasher(), Hasher()
    for key, value in pairs:
        assert value is not None
        expected.add(key, value)
    for _ in write_run(
        cut_blocks(in_pieces(pairs)),
        b"meta",
        str,
        key=None,
        level=1,
        pool=SerialPool(),
        on_block=lambda block: found.add_encoded(block.raw, block.keys),
    ):
        pass
    assert found.finish() == expected.finish()


# --- Damage ---------------------------------------------------------------------------------------

PAIRS: list[Pair] = [(b"%04d" % i, b"%d" % i) for i in range(300)]


def facts_of(data: bytes, facts: ObjectFacts, **changes: object) -> ObjectFacts:
    """The facts of changed bytes, with a hash that fits: an attacker can write both."""
    digest = sha256(data).hexdigest()
    return facts._replace(size=len(data), sha256=digest)._replace(**changes)  # type: ignore[arg-type]


def test_every_cut_and_every_changed_byte_is_noticed() -> None:
    (only,) = written(PAIRS[:20])
    for size in range(len(only.data)):
        cut = only.data[:size]
        with pytest.raises(BackupDamaged):
            read([RunObject(only.name, cut, facts_of(cut, only.facts))])
    for at in range(len(only.data)):
        changed = bytearray(only.data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(BackupDamaged):
            read([RunObject(only.name, bytes(changed), only.facts)])
        with pytest.raises(BackupDamaged):
            read([RunObject(only.name, bytes(changed), facts_of(bytes(changed), only.facts))])


@pytest.mark.parametrize(
    "change",
    [
        {"size": 1},
        {"sha256": "00" * 32},
        {"raw_bytes": 1},
        {"keys": 299},
        {"first_key": b"0"},
        {"last_key": b"9"},
        {"index_at": 60},
        {"index_at": 1 << 40},
        {"index_number": 3},
        {"index_number": 1 << 60},
    ],
)
def test_facts_that_do_not_fit_the_object_are_refused(change: dict[str, int | str | bytes]) -> None:
    (only,) = written(PAIRS)
    with pytest.raises(BackupDamaged):
        read([only._replace(facts=only.facts._replace(**change))])  # type: ignore[arg-type]


def test_objects_out_of_order_or_missing_are_refused() -> None:
    pairs: list[Pair] = [(b"%06d" % i, Random(i).randbytes(300)) for i in range(4000)]
    first, second, *rest = written(pairs, object_bytes=runs.SPARE_BYTES + (300 << 10))
    assert rest
    with pytest.raises(BackupDamaged):
        read([second, first, *rest])
    with pytest.raises(BackupDamaged, match=r"sealed|written"):
        read([first._replace(name=second.name)])
    with pytest.raises(BackupDamaged):
        read([first, first])


def test_another_key_or_none_does_not_open_a_run() -> None:
    (only,) = written(PAIRS, key=KEY)
    with pytest.raises(KeyMissing):
        read([only])
    with pytest.raises(BackupDamaged):
        read([only], KeyRing([DataKey(KEY.key_id, bytes(32), 1)]))
    (plain,) = written(PAIRS)
    with pytest.raises(BackupDamaged, match="not encrypted"):
        read([plain], KEYS)


@settings(deadline=None)
@given(
    index=st.lists(
        st.tuples(
            st.none() | st.binary(max_size=3) | st.integers(0, 9),
            st.integers(-1, 3),
            st.integers(-1, 200),
        )
        | st.integers(0, 9),
        max_size=4,
    )
)
def test_a_hostile_index_is_refused(index: list[object]) -> None:
    data = write_whole(msgpack.packb(index), RUN, "run-0000", None, 0)
    seal = ObjectSeal.read(data, RUN, "run-0000", NO_KEYS)
    facts = ObjectFacts(len(data), "", 0, 0, b"", b"", HEADER_BYTES, 0)
    with pytest.raises(BackupDamaged):
        read_index(seal, data[HEADER_BYTES:], facts)
