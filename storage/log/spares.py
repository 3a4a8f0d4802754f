"""Spare segments: files of the right size, already written once, ready for use by the log.

Theory of operation. A file is filled with zeros and synced under an unfinished name, and renamed to
a spare's only then, so a spare that a crash leaves behind is complete. Its content doesn't matter
(W5 in `wal.py`). At most two are kept.

Filling a segment writes more than the log writes in seconds, and the log's syncs wait behind it.
So a spare is written in small parts with pauses between them (`SparePacer`). If the log needs it
soon, it is written in large parts, which are faster on a busy disk.

Any thread may call. The lock is never held during disk operations. A full disk is StorageFull, and
changes nothing, and so is a process that has no descriptor left. Any other failure is OSError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from raftha.errors import StorageFull
from raftha.storage.log.disk import Disk

SPARES_MAX = 2
SUFFIX = ".seg"
_PREFIX = "spare-"
_UNFINISHED_SUFFIX = ".tmp"
_SMALL_BYTES = 512 * 1024
_LARGE_BYTES = 4 * 1024 * 1024
_PAUSE_PARTS = 3
_PAUSE_MAX_S = 0.1
_MARGIN = 1.25
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What an open fails with when the process, or the machine, has no room for another file."""


OnPart: TypeAlias = Callable[[float], bool]
"""Called before each part with the share that is written; returns True for a small part."""


def at_once(_: float) -> bool:
    """The `OnPart` for a spare that is needed now."""
    return False


class SparePacer:
    """Pauses between the parts of a spare, during which the disk is free for other work."""

    def __init__(
        self,
        used: Callable[[], float],
        wait: Callable[[float], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start to measure: the spare begins now.

        `used` returns the share of the current segment that is full. `wait` sleeps for the given
        seconds; it returns early, with True, if another task needs the disk or the space now.
        """
        self._used = used
        self._wait = wait
        self._now = now
        self._used_before = used()
        self._began = self._part_began = now()
        self._busy_s = 0.0

    def on_part(self, made: float) -> bool:
        """Pause after the share `made`; return True if there is time to write the rest slowly."""
        if not made:
            return True
        now, used = self._now(), self._used()
        took_s = now - self._part_began
        self._busy_s += took_s
        needed_s = (1 + _PAUSE_PARTS) * self._busy_s * (1 - made) / made
        filled, elapsed_s = used - self._used_before, now - self._began
        has_time = 0 <= filled * needed_s * _MARGIN < (1 - used) * elapsed_s
        if has_time:
            has_time = not self._wait(min(_PAUSE_PARTS * took_s, _PAUSE_MAX_S))
        self._part_began = self._now()
        return has_time


class Spares:
    """The spare segments of the log in `directory`, all of `segment_bytes`."""

    def __init__(self, disk: Disk, directory: str, segment_bytes: int) -> None:
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._paths: list[str] = []
        self._last_number = 0
        self._lock = threading.Lock()

    def adopt(self, names: list[str]) -> None:
        """Take over the spares among `names`; remove unfinished ones and those of a wrong size."""
        for name in sorted(names):
            stem, dot, suffix = name.removeprefix(_PREFIX).partition(".")
            if not name.startswith(_PREFIX) or not stem.isascii() or not stem.isdigit():
                continue
            path = f"{self._directory}/{name}"
            self._last_number = max(self._last_number, int(stem))
            is_spare = dot + suffix == SUFFIX and self._has_right_size(path)
            if is_spare and len(self._paths) < SPARES_MAX:
                self._paths.append(path)
            elif dot + suffix in (SUFFIX, _UNFINISHED_SUFFIX):
                self._disk.unlink(path)

    @property
    def is_ready(self) -> bool:
        """Whether a spare is ready."""
        return bool(self._paths)

    def prepare(self, on_part: OnPart) -> None:
        """Make a spare if there is none."""
        with self._lock:
            if self._paths:
                return
        path = self._make(on_part)
        with self._lock:
            self._paths.append(path)

    def take(self, data: bytes) -> tuple[str, int]:
        """Write `data` durably to the start of a spare; return the spare's path and handle.

        On file systems that copy on write the disk may be full even here. The spare isn't part of
        the log yet, and the next attempt writes all of it again, so nothing is lost.
        """
        assert len(data) <= self._segment_bytes, "a first write fits into its segment"
        path, handle = self._take_file()
        try:
            self._disk.pwrite(handle, data, 0)
            self._disk.fdatasync(handle)
        except OSError as error:
            self._discard(path, handle)
            self._raise_if_full(error)
            raise
        return path, handle

    def _take_file(self) -> tuple[str, int]:
        """Open a spare, or make one; return its path and handle."""
        with self._lock:
            path = self._paths.pop() if self._paths else ""
        if path:
            with contextlib.suppress(FileNotFoundError):  # Removed by hand, for its space.
                return path, self._open(path)
        path = self._make(at_once)
        return path, self._open(path)

    def put(self, path: str, segment_bytes: int) -> None:
        """Make a spare of a closed segment that the log no longer needs, or remove it.

        On return the removal of the old name is durable. Only then may the spare be used, or the
        next segment be freed (W4).
        """
        with self._lock:
            is_kept = len(self._paths) < SPARES_MAX and segment_bytes == self._segment_bytes
        if not is_kept:
            self._disk.unlink(path)
            self._disk.sync_dir(self._directory)
            return
        spare = self._next_stem() + SUFFIX
        self._disk.rename(path, spare)
        self._disk.sync_dir(self._directory)
        with self._lock:
            self._paths.append(spare)

    def _make(self, on_part: OnPart) -> str:
        stem = self._next_stem()
        unfinished = stem + _UNFINISHED_SUFFIX
        handle = -1
        try:
            handle = self._open(unfinished, create=True)
            # Zeros rather than fallocate: an fdatasync after a write into allocated but unwritten
            # blocks has to write metadata too.
            made = 0
            while made < self._segment_bytes:
                part_bytes = _SMALL_BYTES if on_part(made / self._segment_bytes) else _LARGE_BYTES
                count = min(part_bytes, self._segment_bytes - made)
                self._disk.pwrite(handle, bytes(count), made)
                self._disk.fdatasync(handle)
                made += count
            self._disk.close(handle)
            handle = -1
            self._disk.rename(unfinished, stem + SUFFIX)
            self._disk.sync_dir(self._directory)
        except OSError as error:
            self._discard(unfinished, handle)
            self._raise_if_full(error)
            raise
        return stem + SUFFIX

    def _open(self, path: str, *, create: bool = False) -> int:
        """Open a file. StorageFull, which keeps a spare, if there is no descriptor for it."""
        try:
            return self._disk.open(path, create=create)
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                if not create:
                    with self._lock:
                        self._paths.append(path)
                raise StorageFull(
                    f"can't open {path}: {os.strerror(error.errno)}",
                    hint="raise the limit of open files (`ulimit -n`); what holds them may let go",
                ) from error
            raise

    def _next_stem(self) -> str:
        with self._lock:
            self._last_number += 1
            return f"{self._directory}/{_PREFIX}{self._last_number}"

    def _has_right_size(self, path: str) -> bool:
        handle = self._disk.open(path)
        try:
            return self._disk.size(handle) == self._segment_bytes
        finally:
            self._disk.close(handle)

    def _discard(self, path: str, handle: int) -> None:
        """Remove a file that couldn't be written; further errors are ignored."""
        if handle >= 0:
            with contextlib.suppress(OSError):
                self._disk.close(handle)
        with contextlib.suppress(OSError):
            self._disk.unlink(path)

    def _raise_if_full(self, error: OSError) -> None:
        if error.errno in _DISK_FULL:
            raise StorageFull(
                f"no space for {self._segment_bytes} bytes of log in {self._directory}",
                hint="free some space; the node accepts writes again as soon as there is enough",
            ) from error
