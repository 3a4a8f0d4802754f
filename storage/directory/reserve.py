"""Space kept back on the disk, so that a full one still takes a checkpoint.

Theory of operation. Only a checkpoint lets log be freed, so on a disk that others have filled it
must not fail. Therefore a file of the reserve's size, with its blocks allocated, lies in the data
directory. A checkpoint that finds no space removes it and tries again; afterwards the file is made
anew, and until that has worked the node counts as full. The file holds nothing, and which blocks a
crash leaves of it doesn't matter: `take` allocates what is missing.

It is a reserve against others' files and the log's own growth, on file systems where allocated
blocks stay allocated (ext4, XFS, tmpfs). A checkpoint that needs more than it waits for space.

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
    """The file `path`, of `size` bytes; with 0 there is none."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._is_taken = False

    @property
    def folder(self) -> Path:
        """Where the file is."""
        return self._path.parent

    def take(self) -> None:
        """Have the space, unless it is there already. StorageFull: as much as there was before."""
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
        """Give the space back, for what can't do without; whether there was any."""
        self._is_taken = False
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False


def require_space(folder: Path, count: int) -> None:
    """StorageFull if the disk says that it has no `count` bytes; no, that is, without trying."""
    disk = os.statvfs(folder)
    if count > disk.f_bavail * disk.f_frsize:
        raise _full(folder, count)


def _full(folder: Path, count: int) -> StorageFull:
    return StorageFull(
        f"no space for {count} bytes ahead of need in {folder}",
        hint="free some; writes are accepted again as soon as there is enough",
    )
