"""A `raftha.storage.log.disk.Disk` in memory that forgets, or half-forgets, unsynced writes.

Theory of operation. A file has two contents: what the page cache shows and what is on the platter.
`pwrite` changes the first; `fdatasync` copies changed sectors to the second. Names likewise: each
folder has a list of changes that `sync_dir` empties. `crash` then decides by `rng`, for each file,
which unsynced sectors made it (none, all, or any subset, so writes are lost, torn and reordered),
and for each folder how many of its unsynced changes did, in order. All handles die in a crash.
Opening the log again without a crash is what a killed process sees: the page cache lives on.

Faults: `fault`, if set, is called with an operation's name and path before it is done, and may
raise. An `fdatasync` that fails so holds the sectors for clean from then on, as Linux does: they
are never written unless they change again. `capacity_bytes` limits the space: ENOSPC beyond.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

SECTOR_BYTES = 512


class Crashed(Exception):
    """The power went, or the process was killed, before an operation was done."""


@dataclass(slots=True, eq=False)
class _File:
    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)

    def write(self, data: bytes, offset: int) -> None:
        if offset > len(self.cached):
            self.touch(len(self.cached), offset)
            self.cached.extend(bytes(offset - len(self.cached)))
        self.cached[offset : offset + len(data)] = data
        self.touch(offset, offset + len(data))

    def touch(self, start: int, end: int) -> None:
        self.dirty.update(range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES)))

    def persist(self, sectors: set[int]) -> None:
        for sector in sorted(sectors):
            start = sector * SECTOR_BYTES
            data = self.cached[start : start + SECTOR_BYTES]
            if start > len(self.durable):
                self.durable.extend(bytes(start - len(self.durable)))
            self.durable[start : start + len(data)] = data

    def sync(self) -> None:
        self.persist(self.dirty)
        self.dirty.clear()

    def crash(self, rng: Random) -> None:
        if self.dirty:
            chance = rng.choice((0.0, 1.0, 0.5, rng.random()))
            self.persist({sector for sector in sorted(self.dirty) if rng.random() < chance})
        self.cached = bytearray(self.durable)
        self.dirty.clear()


@dataclass(slots=True)
class _Folder:
    names: dict[str, _File] = field(default_factory=dict)
    durable: dict[str, _File] = field(default_factory=dict)
    changes: list[dict[str, _File | None]] = field(default_factory=list)

    def change(self, changed: dict[str, _File | None]) -> None:
        """Change names in one step; None unlinks."""
        _apply(self.names, changed)
        self.changes.append(changed)

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.changes.clear()

    def crash(self, rng: Random) -> None:
        survived = rng.choice((0, len(self.changes), rng.randint(0, len(self.changes))))
        for changed in self.changes[:survived]:
            _apply(self.durable, changed)
        self.names = dict(self.durable)
        self.changes.clear()


def _apply(names: dict[str, _File], changed: dict[str, _File | None]) -> None:
    for name, file in changed.items():
        if file is None:
            del names[name]
        else:
            names[name] = file


class SimulatedDisk:
    """A disk in memory; see the module's docstring. New folders are durable at once."""

    def __init__(self, rng: Random) -> None:
        self.fault: Callable[[str, str], None] | None = None
        self.capacity_bytes: int | None = None
        self._rng = rng
        self._folders = {"": _Folder(), "/": _Folder()}
        self._handles: dict[int, tuple[str, _File]] = {}
        self._last_handle = 0

    def crash(self) -> None:
        """Lose power: what wasn't synced survives in part or not at all, handles are dead."""
        files: dict[int, _File] = {}
        for folder in self._folders.values():
            known = [*folder.names.values(), *folder.durable.values()]
            for changed in folder.changes:
                known += [file for file in changed.values() if file is not None]
            files |= {id(file): file for file in known}
        for file in files.values():
            file.crash(self._rng)
        for folder in self._folders.values():
            folder.crash(self._rng)
        self._handles.clear()

    def without_power(self) -> SimulatedDisk:
        """Another disk, with what would surely be left if the power went now."""
        left = SimulatedDisk(Random(0))
        for path, folder in self._folders.items():
            files = {
                name: _File(bytearray(file.durable), bytearray(file.durable))
                for name, file in folder.durable.items()
            }
            left._folders[path] = _Folder(dict(files), files)
        return left

    @property
    def used_bytes(self) -> int:
        """The space that all files take."""
        folders = self._folders.values()
        return sum(len(file.cached) for folder in folders for file in folder.names.values())

    def fail_after(self, operations: int, error: Exception) -> None:
        """Raise `error` in place of the operation that comes after so many more, once."""
        left = operations

        def fault(_operation: str, _path: str) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise error

        self.fault = fault

    def contents(self, path: str) -> bytes:
        """What the file holds, as a reader sees it."""
        return bytes(self._file(path).cached)

    def damage(self, path: str, data: bytes) -> None:
        """Replace the file's bytes, cached and durable, as rotten hardware would."""
        file = self._file(path)
        file.cached, file.durable = bytearray(data), bytearray(data)
        file.dirty.clear()

    def flip(self, path: str, offset: int, bit: int) -> None:
        """Turn over one bit, cached and durable."""
        file = self._file(path)
        file.cached[offset] ^= 1 << bit
        if offset < len(file.durable):
            file.durable[offset] ^= 1 << bit

    def overwrite(self, path: str, offset: int, data: bytes) -> None:
        """Put other bytes there, cached and durable."""
        file = self._file(path)
        for content in (file.cached, file.durable):
            content[offset : offset + len(data)] = data[: max(0, len(content) - offset)]

    def set_aside(self, path: str, target: str) -> None:
        """Move a folder, durably; if `target` is there already, remove the folder."""
        self._before("rename", path)
        folder = self._folders.pop(path, None)
        if folder is not None:
            self._folders.setdefault(target, folder)

    # The contract of `Disk`.

    def open(self, path: str, *, create: bool = False) -> int:
        self._before("open", path)
        folder, name = self._locate(path)
        if name not in folder.names:
            if not create:
                raise _error(errno.ENOENT, path)
            folder.change({name: _File()})
        self._last_handle += 1
        self._handles[self._last_handle] = (path, folder.names[name])
        return self._last_handle

    def close(self, handle: int) -> None:
        self._opened("close", handle)
        del self._handles[handle]

    def size(self, handle: int) -> int:
        return len(self._opened("size", handle).cached)

    def pread(self, handle: int, count: int, offset: int) -> bytes:
        return bytes(self._opened("pread", handle).cached[offset : offset + count])

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        file = self._opened("pwrite", handle)
        growth = offset + len(data) - len(file.cached)
        if self.capacity_bytes is not None and growth > 0:
            lacking = self.used_bytes + growth - self.capacity_bytes
            if lacking > 0:
                fits = max(0, len(data) - lacking)
                file.write(data[:fits], offset)
                raise _error(errno.ENOSPC, self._handles[handle][0])
        file.write(data, offset)

    def fdatasync(self, handle: int) -> None:
        path, file = self._handles.get(handle, ("", None))
        if file is None:
            raise _error(errno.EBADF, str(handle))
        try:
            self._before("fdatasync", path)
        except OSError:
            file.dirty.clear()
            raise
        file.sync()

    def rename(self, old: str, new: str) -> None:
        self._before("rename", old)
        folder, old_name = self._locate(old)
        new_folder, new_name = self._locate(new)
        assert folder is new_folder, "names move within a folder"
        if old_name not in folder.names:
            raise _error(errno.ENOENT, old)
        folder.change({new_name: folder.names[old_name], old_name: None})

    def unlink(self, path: str) -> None:
        self._before("unlink", path)
        folder, name = self._locate(path)
        if name not in folder.names:
            raise _error(errno.ENOENT, path)
        folder.change({name: None})

    def listdir(self, path: str) -> list[str]:
        self._before("listdir", path)
        return list(self._folder(path).names)

    def mkdir(self, path: str) -> None:
        self._before("mkdir", path)
        parts = path.rstrip("/").split("/")
        for i in range(1, len(parts) + 1):
            self._folders.setdefault("/".join(parts[:i]), _Folder())

    def sync_dir(self, path: str) -> None:
        self._before("sync_dir", path)
        self._folder(path).sync()

    def close_dirs(self) -> None:
        pass  # Folders have no handles here.

    def _before(self, operation: str, path: str) -> None:
        if self.fault is not None:
            self.fault(operation, path)

    def _opened(self, operation: str, handle: int) -> _File:
        if handle not in self._handles:
            raise _error(errno.EBADF, str(handle))
        path, file = self._handles[handle]
        self._before(operation, path)
        return file

    def _folder(self, path: str) -> _Folder:
        path = "" if path == "." else path.rstrip("/")
        if path not in self._folders:
            raise _error(errno.ENOENT, path)
        return self._folders[path]

    def _locate(self, path: str) -> tuple[_Folder, str]:
        folder, _, name = path.rpartition("/")
        return self._folder(folder), name

    def _file(self, path: str) -> _File:
        folder, name = self._locate(path)
        return folder.names[name]


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
