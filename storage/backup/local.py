"""A destination that is a folder, of this machine or mounted: each object is a file.

Theory of operation. `create` makes an object in this order:

1. the folders on the way, each durable in the folder above it
2. a file of a temporary name in the object's folder, written and synced
3. a hard link with the object's name, which fails if that name exists; then the temporary name goes
4. a sync of the folder

So an object is there as a whole or not at all, whenever the power fails, and durable on return. On
file systems without hard links step 3 is a look whether the name exists, and a rename. After a
failed step 4 the name is removed again: a second sync that succeeds would prove nothing.

Every path is walked from the root, one folder at a time, and no symbolic link is followed. So
whatever stands in the folder, nothing outside it is read, written or deleted. The configured folder
itself may be a link. Temporary names begin with a dot, as no object's name does; `list` ignores
them and removes those that are older than a day.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from raftha.errors import (
    BackupDamaged,
    DeletionDenied,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    RepositoryError,
    RepositoryUnavailable,
)
from raftha.storage.backup.destination import LISTED_MAX, ObjectInfo
from raftha.storage.backup.names import PARTS_MAX, check_folder, check_name, is_name
from raftha.storage.files import sync_folder

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DRAFT = ".draft-"
_DRAFT_AGE_S = 24 * 3600
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV})
_DENIED = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})
_ASTRAY = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR})
_WRITE_BYTES = 1 << 20
_TRIES = 5
_FOLDERS_KNOWN_MAX = 1000
_Listing = list[ObjectInfo]


class LocalDestination:
    """A folder. It is made, with the folders above it, by the first `create`."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._root = folder.absolute()
        self._lock = threading.Lock()
        self._durable: set[tuple[str, ...]] = set()
        """The folders whose names this process has synced; "()" is the root."""

    @property
    def name(self) -> str:
        return self._name

    def create(self, name: str, data: bytes | memoryview) -> None:
        *folders, last = check_name(name)
        for _ in range(_TRIES):
            try:
                with self._folder(folders, make=True) as folder:
                    is_new = self._create(folder, last, data)
            except FileNotFoundError:
                with self._lock:  # Its folder was empty, and was removed just now.
                    self._durable.clear()
            except OSError as error:
                raise self._error(name, error) from error
            else:
                break
        else:
            raise RepositoryUnavailable(
                "its folder is removed again and again", destination=self._name, object_name=name
            )
        if not is_new:
            raise ObjectExists("it exists", destination=self._name, object_name=name)

    def get(self, name: str, *, size_max: int) -> bytes:
        with self._opened(name) as file:
            size = os.fstat(file).st_size
            if size > size_max:
                raise ObjectTooLarge(
                    f"{size} bytes, expected at most {size_max}",
                    destination=self._name,
                    object_name=name,
                )
            return self._read(name, file, 0, size)

    def get_range(self, name: str, start: int, size: int) -> bytes:
        with self._opened(name) as file:
            return self._read(name, file, start, size)

    def list(self, prefix: str) -> list[ObjectInfo]:
        parts = check_folder(prefix)
        found: _Listing = []
        try:
            with self._folder(parts) as folder:
                self._collect(folder, parts, found)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error(prefix, error) from error
        return sorted(found)

    def delete(self, name: str) -> None:
        *folders, last = check_name(name)
        try:
            with self._folder(folders) as folder:
                os.unlink(last, dir_fd=folder)
                os.fsync(folder)
            self._remove_empty(folders)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno in _DENIED:
                raise DeletionDenied(
                    f"deletion is denied: {error.strerror}",
                    destination=self._name,
                    object_name=name,
                ) from error
            raise self._error(name, error) from error

    def close(self) -> None:
        pass  # Nothing stays open between calls.

    def _create(self, folder: int, last: str, data: bytes | memoryview) -> bool:
        """Write a file durably; False if the name was taken, and is durable now."""
        draft = f"{_DRAFT}{secrets.token_hex(8)}"
        is_new = False
        try:
            try:
                _write(folder, draft, data)
                is_new = _publish(folder, draft, last)
            finally:
                _unlink(folder, draft)
            os.fsync(folder)
        except OSError as error:
            if is_new:
                self._withdraw(folder, last, error)
            raise
        return is_new

    def _withdraw(self, folder: int, last: str, cause: OSError) -> None:
        try:
            os.unlink(last, dir_fd=folder)
        except OSError:
            # Not RepositoryUnavailable: a reader would find the object and take it for durable.
            raise RepositoryError(
                f"{self._root}: {cause.strerror}, and the object can't be removed",
                destination=self._name,
                object_name=last,
            ) from cause

    @contextmanager
    def _folder(self, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """Open a folder below the root; with `make`, it is made durably if it is missing."""
        with self._lock:
            handle = self._open_root(make=make)
            try:
                for depth, part in enumerate(parts, 1):
                    below = self._step(handle, tuple(parts[:depth]), part, make=make)
                    os.close(handle)
                    handle = below
            except BaseException:
                os.close(handle)
                raise
        try:
            yield handle
        finally:
            os.close(handle)

    def _open_root(self, *, make: bool) -> int:
        if make and () not in self._durable:
            for folder in [*reversed(self._root.parents), self._root][1:]:
                is_missing = not folder.exists()
                if is_missing:
                    folder.mkdir(mode=0o700, exist_ok=True)
                if is_missing or folder == self._root:
                    sync_folder(folder.parent)
            self._durable.add(())
        return os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _step(self, above: int, path: tuple[str, ...], part: str, *, make: bool) -> int:
        if make and path not in self._durable:
            with suppress(FileExistsError):
                os.mkdir(part, mode=0o700, dir_fd=above)
            os.fsync(above)  # Also if it exists: a process that made it may have died before this.
            if len(self._durable) >= _FOLDERS_KNOWN_MAX:
                self._durable = {()}
            self._durable.add(path)
        return os.open(part, _FOLDER, dir_fd=above)

    def _remove_empty(self, folders: Sequence[str]) -> None:
        """Remove the folders on this path that hold nothing any more."""
        for depth in range(len(folders), 0, -1):
            with self._folder(folders[: depth - 1]) as above, self._lock:
                try:
                    os.rmdir(folders[depth - 1], dir_fd=above)
                except OSError:
                    return
                self._durable.discard(tuple(folders[:depth]))
                os.fsync(above)

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        *folders, last = check_name(name)
        with self._explained(name), self._folder(folders) as folder:
            file = os.open(last, _READ, dir_fd=folder)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise RepositoryError(
                        "it is not a regular file", destination=self._name, object_name=name
                    )
                yield file
            finally:
                os.close(file)

    def _read(self, name: str, file: int, start: int, size: int) -> bytes:
        parts: list[bytes] = []
        done = 0
        while done < size:
            part = os.pread(file, size - done, start + done)
            if not part:
                raise BackupDamaged(
                    f"it ends before byte {start + size}", destination=self._name, object_name=name
                )
            parts.append(part)
            done += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _collect(self, folder: int, parts: Sequence[str], found: _Listing) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(_DRAFT):
                    _remove_if_old(folder, entry)
                path = [*parts, entry.name]
                if len(path) > PARTS_MAX or not is_name("/".join(path)):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    self._collect_below(folder, path, found)
                elif entry.is_file(follow_symlinks=False):
                    self._add(folder, path, found)

    def _collect_below(self, above: int, path: Sequence[str], found: _Listing) -> None:
        try:
            folder = os.open(path[-1], _FOLDER, dir_fd=above)
        except FileNotFoundError:
            return  # It was removed while this listing ran.
        try:
            self._collect(folder, path, found)
        finally:
            os.close(folder)

    def _add(self, folder: int, path: Sequence[str], found: _Listing) -> None:
        if len(found) >= LISTED_MAX:
            raise RepositoryError(
                f"more than {LISTED_MAX} objects below one folder", destination=self._name
            )
        try:
            state = os.stat(path[-1], dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        found.append(ObjectInfo("/".join(path), state.st_size, state.st_mtime_ns // 1000))

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(name, error) from error

    def _error(self, name: str, error: OSError) -> RepositoryError:
        where = {"destination": self._name, "object_name": name}
        if isinstance(error, FileNotFoundError):
            return ObjectMissing("it is missing", **where)
        if error.errno in _ASTRAY:
            return RepositoryError(
                "a symbolic link or a file stands where a folder must be",
                **where,
                hint=f"look at what is in {self._root}",
            )
        return RepositoryUnavailable(f"{self._root}: {error.strerror}", **where)


def _write(folder: int, draft: str, data: bytes | memoryview) -> None:
    file = os.open(draft, _CREATE, 0o600, dir_fd=folder)
    try:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.write(file, view[done : done + _WRITE_BYTES])
        os.fsync(file)
    finally:
        os.close(file)


def _publish(folder: int, draft: str, name: str) -> bool:
    """Give the draft its name; False if there is an object of that name."""
    try:
        os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        return True
    return False


def _unlink(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _remove_if_old(folder: int, entry: os.DirEntry[str]) -> None:
    with suppress(OSError):  # Another process removed it, or this one may only read.
        state = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(state.st_mode) and time.time() - state.st_mtime > _DRAFT_AGE_S:
            os.unlink(entry.name, dir_fd=folder)
