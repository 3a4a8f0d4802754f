"""The file operations that the log is made of, as a seam: the real disk; tests have another.

Theory of operation. Whether acknowledged data survives a power cut depends on which operations were
followed by which syncs. So the log does everything through these few operations, and the tests swap
in a disk that forgets, or half-forgets, whatever was not synced. The contract, for both:

- `pwrite` reaches the disk for certain only with a later `fdatasync` of the same file that returns.
  Until then any part of it may survive a crash, in any order, in units of a sector.
- A name (created, renamed, unlinked) is certain only after `sync_dir` of its folder.
- Any operation may raise OSError. After a failed `fdatasync` nobody knows what is on the disk, and
  a second one that succeeds proves nothing: Linux holds the pages it couldn't write for clean (the
  «fsyncgate» of PostgreSQL, 2018). Callers must not go on.

Paths are text, handles are whole numbers, and every method may be called from any thread.
"""

from __future__ import annotations

import os
from typing import Protocol


class Disk(Protocol):
    """What the log asks of a file system."""

    def open(self, path: str, *, create: bool = False) -> int:
        """Open for reading and writing; FileNotFoundError if it is missing and not `create`."""
        ...

    def close(self, handle: int) -> None:
        """Give the handle back; syncs nothing."""
        ...

    def size(self, handle: int) -> int:
        """The file's size in bytes."""
        ...

    def pread(self, handle: int, count: int, offset: int) -> bytes:
        """Read `count` bytes, fewer only where the file ends."""
        ...

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        """Write all of `data`, growing the file if need be; or raise, with any part written."""
        ...

    def fdatasync(self, handle: int) -> None:
        """On return, everything written to this file, and its size, is on the disk."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give the file a new name in the same folder, atomically replacing what had it."""
        ...

    def unlink(self, path: str) -> None:
        """Remove the name; FileNotFoundError if there is none."""
        ...

    def listdir(self, path: str) -> list[str]:
        """The names in a folder, in no particular order."""
        ...

    def mkdir(self, path: str) -> None:
        """Make the folder and those above it; nothing happens if it is there."""
        ...

    def sync_dir(self, path: str) -> None:
        """On return, all that happened to names in this folder is on the disk."""
        ...


class RealDisk:
    """The operating system's files."""

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
        while done < len(data):  # A short write is no error: the next call says what stopped it.
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
        os.makedirs(path, exist_ok=True)

    def sync_dir(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
