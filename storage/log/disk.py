"""The file operations that the log uses, as a seam: tests replace the real disk by another.

Theory of operation. Whether acknowledged data survives a power cut depends on which operations were
followed by which syncs. So the log uses only these operations, and the tests substitute a disk that
loses all or part of what was not synced. Both disks keep this contract:

- What `pwrite` wrote is durable once a later `fdatasync` of the same file has returned. Until then
  any part of it may survive a crash, in any order, in units of a sector.
- A name (created, renamed, unlinked) is durable once `sync_dir` of its folder has returned.
- Any operation may raise OSError. After a failed `fdatasync` the content of the disk is unknown,
  and a second one that succeeds proves nothing: Linux marks the pages it couldn't write as clean
  (the «fsyncgate» of PostgreSQL, 2018). Callers must stop using the file.

Paths are text, handles are whole numbers, and any thread may call every method.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol


class Disk(Protocol):
    """The file system as the log needs it."""

    def open(self, path: str, *, create: bool = False) -> int:
        """Open for reading and writing; FileNotFoundError if it is missing and not `create`."""
        ...

    def close(self, handle: int) -> None:
        """Close the handle; nothing is synced."""
        ...

    def size(self, handle: int) -> int:
        """Return the file's size in bytes."""
        ...

    def pread(self, handle: int, count: int, offset: int) -> bytes:
        """Read `count` bytes, fewer only where the file ends."""
        ...

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        """Write all of `data`, growing the file if needed; on an error any part may be written."""
        ...

    def fdatasync(self, handle: int) -> None:
        """Make the file's content and size durable."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Rename the file within its folder, atomically replacing a file of the new name."""
        ...

    def unlink(self, path: str) -> None:
        """Remove the file; FileNotFoundError if it is missing."""
        ...

    def listdir(self, path: str) -> list[str]:
        """Return the names in a folder, in no particular order."""
        ...

    def mkdir(self, path: str) -> None:
        """Make the folder and its parents; does nothing if it exists."""
        ...

    def sync_dir(self, path: str) -> None:
        """Make all changes of names in this folder durable.

        The first call may keep the folder open for the later ones, which need no descriptor then.
        """
        ...

    def close_dirs(self) -> None:
        """Close the folders that `sync_dir` has kept open."""
        ...


class RealDisk:
    """The operating system's files.

    Folders stay open once they are synced. So the log goes on when the process has no descriptor
    left, until it needs another file: what it has renamed must be synced, come what may.
    """

    def __init__(self) -> None:
        self._dirs: dict[str, int] = {}
        self._lock = threading.Lock()

    def __del__(self) -> None:
        self.close_dirs()

    def open(self, path: str, *, create: bool = False) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)

    def close(self, handle: int) -> None:
        os.close(handle)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def pread(self, handle: int, count: int, offset: int) -> bytes:
        data = os.pread(handle, count, offset)
        if len(data) == count or not data:
            return data
        parts = [data]  # One call reads at most 2 GiB, and a signal may cut it short.
        done = len(data)
        while done < count:
            data = os.pread(handle, count - done, offset + done)
            if not data:
                break
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        done = os.pwrite(handle, data, offset)
        while done < len(data):  # A short write is no error: the next call reports the cause.
            done += os.pwrite(handle, memoryview(data)[done:], offset + done)

    def fdatasync(self, handle: int) -> None:
        os.fdatasync(handle)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def mkdir(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)

    def sync_dir(self, path: str) -> None:
        with self._lock:
            os.fsync(self._dir(path))

    def _dir(self, path: str) -> int:
        """Return the handle of a folder, which may have been replaced by another one."""
        handle = self._dirs.get(path)
        if handle is not None:
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
            os.close(self._dirs.pop(path))
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._dirs[path] = handle
        return handle

    def close_dirs(self) -> None:
        with self._lock:
            while self._dirs:
                os.close(self._dirs.popitem()[1])
