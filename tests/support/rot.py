"""Damage to a store's values, for tests of what reads them."""

from __future__ import annotations

from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.store import Store
from tests.sim.store import DictStore


def rot(store: Store, key: bytes) -> None:
    """Damage the value of `key`, which is there."""
    if isinstance(store, DictStore):
        store.rot(key)
        return
    assert isinstance(store, CheckpointStore)
    with store._env.begin(store._data, write=True) as txn:
        record = bytearray(txn.get(key) or b"")
        record[-1] ^= 1
        txn.put(key, bytes(record))
