"""A state's file while it is built: it is a store too, equal to one in memory."""

from __future__ import annotations

import threading
from pathlib import Path
from random import Random

import pytest

from raftha.errors import Corrupt, StorageFailed
from raftha.storage.state import builder
from raftha.storage.state.builder import StoreBuilder
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.store import Store
from tests.sim.store import DictStore


def assert_equal(found: Store, model: DictStore, keys: list[bytes]) -> None:
    assert [found.get(key) for key in keys] == [model.get(key) for key in keys]
    assert found.census(keys)[1:] == model.census(keys)[1:]
    assert found.digest() == model.digest()
    for start, end in ((None, None), (keys[3], keys[-3]), (keys[-1], keys[0]), (b"", b"\xff")):
        for is_reverse in (False, True):
            for limit in (1, 7, 10_000):
                wanted = model.scan(start, end, limit=limit, reverse=is_reverse)
                assert found.scan(start, end, limit=limit, reverse=is_reverse) == wanted
    with found.export() as export, model.export() as expected:
        assert (export.meta, export.entries) == (expected.meta, expected.entries)
        raw = b"".join(block.raw for block in export.blocks)
        assert raw == b"".join(block.raw for block in expected.blocks)


def test_it_is_a_store_before_it_is_finished(tmp_path: Path) -> None:
    random, model = Random(1), DictStore()
    keys = [b"%03d" % number for number in range(300)]
    built = StoreBuilder(tmp_path / "state")
    assert built.meta() is None
    pairs = [(key, random.randbytes(random.randrange(500))) for key in keys[::2]]
    built.append([pairs[:50], pairs[50:]])
    model.write(pairs, b"")
    for number in range(20):
        changed = {random.choice(keys): random.choice([None, b"%d" % number]) for _ in range(30)}
        items = tuple(sorted(changed.items()))
        built.write(items, b"meta %d" % number)
        model.write(items, b"meta %d" % number)
        assert built.meta() == b"meta %d" % number
        assert_equal(built, model, keys)
    built.finish(b"last")
    store = CheckpointStore(tmp_path / "state", is_verified=True)
    model.write((), b"last")
    assert_equal(store, model, keys)
    assert store.meta() == b"last"
    store.close()
    again = StoreBuilder(tmp_path / "state")
    again.write([(b"new", b"1")], b"later")
    model.write([(b"new", b"1")], b"later")
    assert_equal(again, model, keys)
    again.close()


def test_keys_out_of_order_are_refused(tmp_path: Path) -> None:
    built = StoreBuilder(tmp_path / "state")
    with pytest.raises(StorageFailed, match="order"):
        built.append([[(b"b", b"1")], [(b"a", b"1")]])
    built.close()


def test_the_map_grows_beside_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "MAP_BYTES_MIN", 1 << 20)
    monkeypatch.setattr(builder, "TXN_BYTES", 1 << 20)
    built = StoreBuilder(tmp_path / "state")
    built.append([[(b"0", b"first")]])
    is_done = threading.Event()
    found: list[bytes | None] = []

    def read() -> None:
        while not is_done.is_set():
            found.append(built.get(b"0"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        built.append([[(b"%06d" % number, bytes(4000))] for number in range(10, 4000)])
    finally:
        is_done.set()
        reader.join()
    assert set(found) == {b"first"}
    assert built.census([b"000010"])[1:] == (3991, 1)
    built.close()


def test_a_damaged_record_is_found(tmp_path: Path) -> None:
    built = StoreBuilder(tmp_path / "state")
    with built._env.begin(built._data, write=True) as txn:
        txn.put(b"k", b"\0not its checksum")
    for read in (
        lambda: built.get(b"k"),
        lambda: built.scan(None, None, limit=1, reverse=False),
        built.digest,
    ):
        with pytest.raises(Corrupt, match="6b is damaged"):
            read()
    built.close()
