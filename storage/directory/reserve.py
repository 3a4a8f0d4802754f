"""A reserve of disk space, so that a checkpoint still succeeds on a full disk.

Theory of operation. The log can be freed only after a checkpoint, so a checkpoint must not fail
when other files have filled the disk. Therefore the data directory has a file of the reserve's size
with its blocks allocated. A checkpoint that finds no space removes the file and tries again.
Afterwards the file is made again, and until that succeeds the node reports a full disk. The file
has no content, and a crash may leave any part of it: `take` allocates what is missing.

The reserve protects against other files and the log's own growth, on file systems where allocated
blocks stay allocated (ext4, XFS, tmpfs). A checkpoint that needs more space than that waits.

One thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from raftha.errors import StorageFailed, StorageFull

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """The file `path` of `size` bytes; a size of 0 turns the reserve off."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._is_taken = False

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self._path.parent

    def take(self) -> None:
        """Allocate the reserve unless it is allocated. StorageFull leaves no reserve."""
        if self._is_taken:
            return
        if not self._size:
            self._path.unlink(missing_ok=True)
            return
        try:
            held = self._path.stat().st_size if self._path.exists() else 0
            require_space(self._path.parent, self._size - held)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(handle, min(held, self._size))
                os.posix_fallocate(handle, 0, self._size)
            finally:
                os.close(handle)
        except OSError as error:
            self.give_up()
            if error.errno in DISK_FULL:
                raise _full(self._path.parent, self._size) from error
            raise StorageFailed(f"{self._path}: {error.strerror}") from error
        self._is_taken = True

    def give_up(self) -> bool:
        """Free the reserve for work that can't wait; return True if there was one."""
        self._is_taken = False
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False


def require_space(folder: Path, count: int) -> None:
    """Raise StorageFull if the file system reports fewer than `count` free bytes."""
    disk = os.statvfs(folder)
    if count > disk.f_bavail * disk.f_frsize:
        raise _full(folder, count)


def _full(folder: Path, count: int) -> StorageFull:
    return StorageFull(
        f"no space to preallocate {count} bytes in {folder}",
        hint="free some space; the node accepts writes again as soon as there is enough",
    )
