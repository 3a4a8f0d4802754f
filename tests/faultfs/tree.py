"""Files and folders in memory, which know which of their bytes are on the platter.

Theory of operation. A file has one content, what readers see, and beside it an undo list: what each
sector held that was changed since the last sync. To sync is to forget the list; in a power loss
some, all or none of the sectors are put back, by `rng`, so writes are lost, torn and reordered. A
file's size is as unsure as its bytes until it is synced.

A failed sync leaves its sectors *stuck*: considered clean, as Linux does, so no later sync writes
them, and put back in any power loss, unless they are written again.

Names are certain once their folder is synced. All changes of names are in one journal, in order. To
sync a folder makes durable every change in it, along with whatever hangs together with these: the
other folder of a rename, and what was done there before. In a power loss the changes that hang
together survive up to some point, in order, or not at all. A file whose name doesn't survive is
gone, however well it was synced.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

SECTOR_BYTES = 512


@dataclass(slots=True, eq=False)
class File:
    """A file; `mode` has its permissions."""

    id: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    durable_size: int = 0
    undo: dict[int, bytes | bytearray] = field(default_factory=dict)
    stuck: dict[int, bytes | bytearray] = field(default_factory=dict)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Put `data` at `offset`; a gap before it is zeros."""
        self._note(min(offset, len(self.data)), offset + len(data))
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data

    def resize(self, size: int) -> None:
        """Cut, or fill up with zeros."""
        self._note(min(size, len(self.data)), max(size, len(self.data)))
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def sync(self) -> None:
        """Make the content durable, except stuck sectors."""
        self.undo.clear()
        self.durable_size = len(self.data)

    def fail_sync(self) -> None:
        """A sync has failed: its sectors will never be written, and look clean."""
        self.stuck |= self.undo
        self.undo.clear()

    def lose_power(self, rng: Random, chance: float | None = None) -> None:
        """Become what is on the platter; an unsynced sector survives with probability `chance`."""
        if chance is None:
            chance = rng.choice((0.0, 1.0, 0.5, rng.random()))
        lost = {sector: old for sector, old in self.undo.items() if rng.random() >= chance}
        size = len(self.data) if rng.random() < chance else self.durable_size
        kept = [sector for sector in self.undo if sector not in lost]
        if kept:  # A surviving sector implies the size that it needs.
            size = max(size, min(len(self.data), (max(kept) + 1) * SECTOR_BYTES))
        for sector, old in (self.stuck | lost).items():
            self._put_back(sector, old)
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))
        self.undo.clear()
        self.stuck.clear()
        self.durable_size = size

    def _note(self, start: int, end: int) -> None:
        for sector in range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            if sector not in self.undo:
                at = sector * SECTOR_BYTES
                old = self.stuck.pop(sector, None)
                self.undo[sector] = self.data[at : at + SECTOR_BYTES] if old is None else old

    def _put_back(self, sector: int, old: bytes | bytearray) -> None:
        start = sector * SECTOR_BYTES
        if start > len(self.data):
            self.data.extend(bytes(start - len(self.data)))
        self.data[start : start + SECTOR_BYTES] = old.ljust(SECTOR_BYTES, b"\0")


@dataclass(slots=True, eq=False)
class Folder:
    """A folder: the names that are seen in it, and those that are durable."""

    id: int
    mode: int
    names: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)


Node = File | Folder
Change = tuple[Folder, str, Node | None]


class Tree:
    """The file system: `root` and all below it; errors are OSError with the usual codes."""

    def __init__(self) -> None:
        self.ignores_syncs = False
        """True if this disk lies: it reports syncs that it doesn't do."""
        self.capacity_bytes = 1 << 40
        self.root = Folder(1, 0o755)
        self._last_id = 1
        self._journal: list[tuple[Change, ...]] = []

    @property
    def free_bytes(self) -> int:
        """How much more can be written; what is removed but still open counts as free."""
        files = {n.id: len(n.data) for _, n in _walk(self.root, "") if isinstance(n, File)}
        return max(0, self.capacity_bytes - sum(files.values()))

    # ---------------------------------------------------------------- names

    def get(self, folder: Folder, name: str) -> Node:
        """What has this name; FileNotFoundError if nothing has."""
        if name not in folder.names:
            raise _error(errno.ENOENT)
        return folder.names[name]

    def path_of(self, node: Node) -> str:
        """The path below the root, "" for the root and for what has no name any more."""
        return next((path for path, found in _walk(self.root, "") if found is node), "")

    def create(self, folder: Folder, name: str, mode: int) -> File:
        """Make an empty file."""
        self._last_id += 1
        file = File(self._last_id, mode)
        self._add(folder, name, file)
        return file

    def mkdir(self, folder: Folder, name: str, mode: int) -> Folder:
        """Make an empty folder."""
        self._last_id += 1
        made = Folder(self._last_id, mode)
        self._add(folder, name, made)
        return made

    def link(self, file: File, folder: Folder, name: str) -> None:
        """Give a file one more name."""
        self._add(folder, name, file)

    def remove(self, folder: Folder, name: str) -> None:
        """Remove a name; of a folder, only if that is empty."""
        _check_empty(self.get(folder, name))
        self._change((folder, name, None))

    def rename(self, folder: Folder, name: str, to: Folder, new_name: str) -> None:
        """Give a file or folder another name, in the place of what has that one, atomically."""
        node = self.get(folder, name)
        replaced = to.names.get(new_name)
        if replaced is not None:
            _check_empty(replaced)
        if replaced is not node:
            self._change((folder, name, None), (to, new_name, node))

    def sync_names(self, folder: Folder) -> None:
        """Make the names in `folder` durable, and all that hangs together with them."""
        if self.ignores_syncs:
            return
        folders, kept, synced = {folder.id}, [], []
        for changes in reversed(self._journal):
            if folders.isdisjoint(_folders(changes)):
                kept.append(changes)
            else:
                synced.append(changes)
                folders |= _folders(changes)
        for changes in reversed(synced):
            _apply(changes, is_durable=True)
        self._journal = kept[::-1]

    def _add(self, folder: Folder, name: str, node: Node) -> None:
        if name in folder.names:
            raise _error(errno.EEXIST)
        self._change((folder, name, node))

    def _change(self, *changes: Change) -> None:
        _apply(changes, is_durable=False)
        self._journal.append(changes)

    # ---------------------------------------------------------------- contents

    def write(self, file: File, data: bytes | memoryview, offset: int) -> int:
        """Write as much as there is space for, and return how much; ENOSPC if there is none."""
        growth = offset + len(data) - len(file.data)
        fits = len(data)
        if growth > 0:
            fits -= max(0, growth - self.free_bytes)
            if fits <= 0:
                raise _error(errno.ENOSPC)
        file.write(data[:fits], offset)
        return fits

    def allocate(self, file: File, size: int) -> None:
        """Have the file be at least this long; ENOSPC, and nothing done, if there is no space."""
        if size - len(file.data) > self.free_bytes:
            raise _error(errno.ENOSPC)
        if size > len(file.data):
            file.resize(size)

    def sync(self, file: File) -> None:
        """Make a file's content durable."""
        if not self.ignores_syncs:
            file.sync()

    # ---------------------------------------------------------------- power

    def lose_power(self, rng: Random, chance: float | None = None) -> None:
        """Become what is on the platter: `rng` decides which unsynced parts survive.

        `chance`: the probability for each change; None for one that varies.
        """
        for together in _components(self._journal):
            count = len(together)
            survived = rng.choice((0, count, rng.randint(0, count)))
            if chance is not None:
                survived = sum(rng.random() < chance for _ in together)
            for changes in together[:survived]:
                _apply(changes, is_durable=True)
        self._journal = []
        _come_back(self.root, rng, chance)


def _components(journal: list[tuple[Change, ...]]) -> list[list[tuple[Change, ...]]]:
    """The changes by what hangs together because it is in the same folders; each in order."""
    groups: list[tuple[set[int], list[int]]] = []
    for i, changes in enumerate(journal):
        folders, places = _folders(changes), [i]
        apart = []
        for group in groups:
            if folders.isdisjoint(group[0]):
                apart.append(group)
            else:
                folders |= group[0]
                places += group[1]
        groups = [*apart, (folders, places)]
    return [[journal[i] for i in sorted(places)] for _, places in groups]


def _come_back(folder: Folder, rng: Random, chance: float | None) -> None:
    folder.names = dict(folder.durable)
    for node in folder.names.values():
        if isinstance(node, File):
            node.lose_power(rng, chance)
        else:
            _come_back(node, rng, chance)


def _folders(changes: tuple[Change, ...]) -> set[int]:
    return {folder.id for folder, _, _ in changes}


def _apply(changes: tuple[Change, ...], *, is_durable: bool) -> None:
    for folder, name, node in changes:
        names = folder.durable if is_durable else folder.names
        if node is None:
            del names[name]
        else:
            names[name] = node


def _walk(folder: Folder, above: str) -> Iterator[tuple[str, Node]]:
    for name, node in folder.names.items():
        yield above + name, node
        if isinstance(node, Folder):
            yield from _walk(node, f"{above}{name}/")


def _check_empty(node: Node) -> None:
    if isinstance(node, Folder) and node.names:
        raise _error(errno.ENOTEMPTY)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
