"""States by name in memory: where a recovery builds its image in tests and in the simulator."""

from __future__ import annotations

from collections.abc import Iterable

from raftha.storage.backup.pairs import Piece
from tests.sim.store import DictStore


class DictBuilder(DictStore):
    """A new state; it can't be opened before it is finished."""

    stores: dict[str, DictStore]
    name: str
    last = b""

    def append(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            for key, value in piece:
                assert key > self.last and value is not None
                self.last = key
                self._values[key] = value

    def change(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self.write(list(piece), self.meta() or b"")

    def finish(self, meta: bytes) -> None:
        self.write((), meta)
        self.stores[self.name] = self.crash()


class DictStores:
    """An `ImageStores`. A store that was opened stays in `stores`, and can be opened again."""

    def __init__(self) -> None:
        self.stores: dict[str, DictStore] = {}

    def build(self, name: str, bytes_expected: int) -> DictBuilder:
        builder = DictBuilder()
        builder.stores, builder.name = self.stores, name
        return builder

    def reopen(self, name: str) -> DictBuilder:
        builder = self.build(name, 0)
        builder._values = self.stores[name]._values
        return builder

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
