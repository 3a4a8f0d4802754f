"""Where a recovery builds states, as a seam: LMDB files in a folder, dictionaries in the simulator.

A recovery needs several states at a time if recoveries of the live cluster lie on its way: each
goes back to an earlier state, its *source*, which is built beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from raftha.storage.backup.pairs import Piece
from raftha.storage.files import sync_folder
from raftha.storage.state.builder import StoreBuilder
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.store import Store

STATE = "state"
"""The name of the state that remains."""


class ImageBuilder(Store, Protocol):
    """A new state, from the pairs of backups and from a log that is replayed over them.

    It is a store before it is finished, but nothing of it is durable. One thread at a time writes;
    another may read.
    """

    def append(self, pieces: Iterable[Piece]) -> None:
        """Add pairs behind all that are there, in order."""
        ...

    def change(self, pieces: Iterable[Piece]) -> None:
        """Put pairs, and delete the keys of those without a value."""
        ...

    def finish(self, meta: bytes) -> None:
        """Write the meta, make everything durable, and close it; now it can be opened."""
        ...


class ImageStores(Protocol):
    """States by name."""

    def build(self, name: str, bytes_expected: int) -> ImageBuilder:
        """Begin a new state."""
        ...

    def reopen(self, name: str) -> ImageBuilder:
        """Go on with a state that is finished, and not open."""
        ...

    def open(self, name: str) -> Store:
        """Open a state that is finished, and not open."""
        ...

    def copy(self, name: str, copy: str) -> None:
        """Copy a state that is not open; it replaces one of that name."""
        ...

    def rename(self, name: str, new: str) -> None:
        """Rename a state that is not open; it replaces one of that name."""
        ...


class FolderStores:
    """LMDB files, each in a folder of its name in `folder`, which exists."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def build(self, name: str, bytes_expected: int) -> StoreBuilder:
        return StoreBuilder(self._folder / name, bytes_expected)

    def reopen(self, name: str) -> StoreBuilder:
        return StoreBuilder(self._folder / name)

    def open(self, name: str) -> CheckpointStore:
        return CheckpointStore(self._folder / name, is_verified=True)

    def copy(self, name: str, copy: str) -> None:
        self._remove(copy)
        shutil.copytree(self._folder / name, self._folder / copy)
        sync_folder(self._folder / copy)

    def rename(self, name: str, new: str) -> None:
        self._remove(new)
        (self._folder / name).rename(self._folder / new)

    def _remove(self, name: str) -> None:
        if (self._folder / name).exists():
            shutil.rmtree(self._folder / name)
