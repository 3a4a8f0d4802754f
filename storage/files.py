"""Small files that must survive a power loss: replaced as a whole, durably, for the owner only."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raftha.errors import ConfigError, StorageFailed

LIST_FORMAT = 1
_OWNER_HINT = (
    "all of data_dir must belong to the user that the node runs as; a command that another user, "
    "such as root, ran on it may have replaced a file"
)


def unusable(error: OSError, path: str | Path) -> StorageFailed:
    """The error for a file of a node, at or below `path`, that the system refuses."""
    return StorageFailed(describe(error, path), hint=owner_hint(error))


@contextmanager
def system_errors_named(path: Path) -> Iterator[None]:
    """Turn each OSError into a StorageFailed that names the file, at or below `path`."""
    try:
        yield
    except OSError as error:
        raise unusable(error, path) from error


def describe(error: OSError, path: str | Path) -> str:
    """Return which file the system refuses, and why."""
    return f"{error.filename or path}: {error.strerror or error}"


def owner_hint(error: OSError) -> str:
    """What to do about a file that belongs to another user; "" if that is not the error."""
    return _OWNER_HINT if error.errno in (errno.EACCES, errno.EPERM) else ""


def replace_file(path: Path, content: str) -> None:
    """Write the file under another name, and rename it; durable on return. OSError."""
    draft = path.with_name(path.name + ".tmp")
    with open(draft, "w", encoding="utf-8", opener=_open_private) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_list(path: Path, key: str) -> list[Any]:
    """Return the list in a file of `replace_list`; an empty one if there is no file.

    ConfigError for another format; ValueError, KeyError, TypeError or RecursionError for damage.
    """
    if not path.exists():
        return []
    found = json.loads(path.read_bytes())
    if found["format"] != LIST_FORMAT:
        raise ConfigError(f"{path} has format {found['format']}; this raftha reads {LIST_FORMAT}")
    if found["crc"] != _checksum(found[key]):
        raise ValueError("its checksum is wrong")
    return list(found[key])


def replace_list(path: Path, key: str, listed: list[Any]) -> None:
    """Write `{"format": 1, key: listed, "crc": CRC-32 of the compact JSON of the list}`."""
    replace_file(path, json.dumps({"format": LIST_FORMAT, key: listed, "crc": _checksum(listed)}))


def compact_json(value: Any) -> bytes:
    """Return the value as JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def _checksum(listed: list[Any]) -> int:
    return zlib.crc32(compact_json(listed))


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
