"""Opens a destination by its URL or path."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from raftha.errors import ConfigError
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.local import LocalDestination
from raftha.storage.backup.memory import MemoryDestination

_memory: dict[str, MemoryDestination] = {}
"""What `memory://` URLs lead to: two destinations of one URL share their objects."""


def open_destination(name: str, url: str, *, base: Path, retries: int | None = None) -> Destination:
    """Open the destination that a configuration calls `name`. ConfigError if `url` is none.

    `url` is a folder, relative to `base` or absolute, `file:///folder`, or the URL of a bucket (see
    `raftha.storage.backup.object_store`); `memory://name` is for tests. Nothing is contacted yet.
    MissingExtra if a bucket needs what the extra `backup` brings. `retries`: how often a request to
    a bucket is repeated, if not as often as usual.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        if not url:
            raise ConfigError(f"the backup destination {name} has no URL")
        return LocalDestination(name, base / url)
    if scheme == "memory":
        return _memory.setdefault(url, MemoryDestination(name))
    if scheme == "file":
        return LocalDestination(name, _folder_of(name, url))
    if scheme in ("s3", "gs", "az"):
        from raftha.storage.backup.object_store import open_store  # noqa: PLC0415

        return open_store(name, url) if retries is None else open_store(name, url, retries=retries)
    raise ConfigError(
        f"the backup destination {name} has an unknown scheme: {scheme!a}",
        hint="known are file, s3, gs, az, or a path",
    )


def _folder_of(name: str, url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
        raise ConfigError(
            f"the backup destination {name} is not the URL of a folder of this machine",
            hint="file:///absolute/folder",
        )
    return Path(unquote(parts.path))
