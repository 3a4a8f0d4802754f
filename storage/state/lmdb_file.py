"""LMDB's file: how to find damage and the mark of a clean end, how large it is, how to copy it."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lmdb
from lmdb.verify import VerifyError, verify

from raftha.config import KEY_BYTES_MAX, MIB
from raftha.errors import StorageFailed
from raftha.storage.files import sync_folder

META_KEY = b"checkpoint"
"""The one key of the database `meta`."""
CLEAN = "CLEAN"
"""The mark of a clean end: a file with size and time of the data file."""
COPY_BYTES = 128 * 1024
"""A copy is handed over in pieces of this size."""
SYNC_BYTES = MIB
"""Bytes written between two syncs of a copy, so that the log's syncs don't wait for all of it."""
SPARE_BYTES = 64 * MIB
"""A file may have so much free space in any case."""
COMPACT_FACTOR, COMPACT_BYTES_MAX = 4, 1024 * MIB
"""A file is compacted if it is so many times as large as its content, and that is not too much to
be copied while a checkpoint waits."""
_META_PAGES = 2
DAMAGE = (
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.KeyExistsError,
    lmdb.NotFoundError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)
"""What LMDB raises in a read or write of a damaged file; valid calls on a sound one never do."""
UNCLEAR = (
    lmdb.BadDbiError,
    lmdb.BadTxnError,
    lmdb.InvalidParameterError,
    lmdb.PanicError,
    lmdb.TxnFullError,
)
"""What LMDB may raise of a damaged file, but also for other reasons."""


class StoreSizes(NamedTuple):
    """Bytes of the file, and of its pages that are in use."""

    file: int
    used: int

    @property
    def is_wasteful(self) -> bool:
        """Whether the file should be compacted."""
        is_large = self.file > COMPACT_FACTOR * self.used + SPARE_BYTES
        return is_large and self.used <= COMPACT_BYTES_MAX


def used_bytes(
    env: lmdb.Environment, txn: lmdb.Transaction[bytes], *databases: lmdb._Database
) -> int:
    """The bytes of all pages in use, but for the list of free ones."""
    stats = [env.stat(), *(txn.stat(database) for database in databases)]
    pages = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
    return (_META_PAGES + pages) * stats[0]["psize"]


def written_bytes(env: lmdb.Environment) -> int:
    """The bytes of all pages that were ever in use; any thread."""
    return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


def write_copy(
    folder: Path,
    copy: Callable[[Callable[[bytes], None]], None],
    is_wanted: Callable[[], bool],
) -> None:
    """Make `folder` with the file that `copy` hands over, durably; it replaces an earlier one.

    StorageFailed once it is no longer wanted.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with (folder / "data.mdb").open("wb", buffering=0) as file:

        def take(piece: bytes) -> None:
            if file.write(piece) != len(piece) or not is_wanted():
                raise StorageFailed(f"{folder}: a short write, or it is no longer wanted")
            if file.tell() % SYNC_BYTES < len(piece):
                os.fdatasync(file.fileno())

        copy(take)
        os.fsync(file.fileno())


def find_damage(path: Path) -> str:
    """Return the first damage that the verifier finds, "" if none. Reads the whole file."""
    try:
        found: list[str] = verify(str(path))  # type: ignore[no-untyped-call]
    except VerifyError as error:
        return str(error)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        return f"the verifier can't read it: {error!r}"
    return found[0] if found else ""


def seek_first(cursor: lmdb.Cursor[bytes], start: bytes | None) -> bool:
    """Go to the first key at or after `start`; False if there is none."""
    if not start:
        return cursor.first()
    # LMDB refuses keys over its limit. The only key at or after the cut bound but before the whole
    # bound is the cut bound itself.
    if not cursor.set_range(start[:KEY_BYTES_MAX]):
        return False
    return cursor.key() >= start or cursor.next()


def seek_last(cursor: lmdb.Cursor[bytes], end: bytes | None) -> bool:
    """Go to the last key before `end`; False if there is none."""
    if end is None:
        return cursor.last()
    if not end:
        return False
    if not cursor.set_range(end[:KEY_BYTES_MAX]):
        return cursor.last()
    return cursor.key() < end or cursor.prev()


def take_mark(path: Path) -> bool:
    """Remove the mark of a clean end, durably; True if there was one and it fits the file."""
    marked = path.with_name(CLEAN)
    if not marked.exists():
        return False
    mark = marked.read_bytes()
    marked.unlink()
    sync_folder(path.parent)
    return mark == _mark_of(path)


def leave_mark(path: Path) -> None:
    """Leave the mark of a clean end, durably."""
    marked = path.with_name(CLEAN)
    marked.touch(0o600)
    with marked.open("wb") as file:
        file.write(_mark_of(path))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _mark_of(path: Path) -> bytes:
    found = path.stat()
    return b"%d %d\n" % (found.st_size, found.st_mtime_ns)


def error_code(error: lmdb.Error | OSError) -> int:
    """The error number: negative if it is LMDB's own, 0 if there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    return getattr(error, "code", 0)
