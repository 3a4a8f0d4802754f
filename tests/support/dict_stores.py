"""States by name in memory: where a recovery builds its image in tests and in the simulator."""

from __future__ import annotations

from collections.abc import Iterable

from raftha.storage.backup.pairs import Piece
from tests.sim.store import DictStore


class DictBuilder:
    """A new state; nothing of it is there before it is finished."""

    def __init__(self, stores: DictStores, name: str) -> None:
        self._stores = stores
        self._name = name
        self._pairs: dict[bytes, bytes] = {}
        self._last = b""

    def append(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            for key, value in piece:
                assert key > self._last and value is not None
                self._last = key
                self._pairs[key] = value

    def change(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            for key, value in piece:
                if value is None:
                    self._pairs.pop(key, None)
                else:
                    self._pairs[key] = value

    def finish(self, meta: bytes) -> None:
        store = DictStore()
        store.write(tuple(sorted(self._pairs.items())), meta)
        self._stores.stores[self._name] = store

    def close(self) -> None:
        pass


class DictStores:
    """An `ImageStores`. A store that was opened stays in `stores`, and can be opened again."""

    def __init__(self) -> None:
        self.stores: dict[str, DictStore] = {}

    def build(self, name: str, bytes_expected: int) -> DictBuilder:
        return DictBuilder(self, name)

    def open(self, name: str) -> DictStore:
        self.stores[name] = opened = self.stores[name].crash()
        return opened

    def copy(self, name: str, copy: str) -> None:
        self.stores[copy] = DictStore.from_snapshot(self.stores[name].crash().snapshot())

    def rename(self, name: str, new: str) -> None:
        self.stores[new] = self.stores.pop(name)

    def pairs(self, name: str = "state") -> dict[bytes, bytes]:
        """All pairs of a state."""
        export = self.stores[name].crash()
        found = export.scan(None, None, limit=1 << 30, reverse=False)
        assert len(found) == export.census(()).entries
        return dict(found)
