"""A place for a repository's objects, as a seam: a folder, a bucket, a dictionary in memory.

Theory of operation. A repository needs only this of a place: objects appear whole under their name
or not at all, and an object that was created is durable when `create` returns. Objects are never
changed. Their names come from consensus, so that two writers of one name write the same bytes.

What a destination does not have to guarantee: that `create` refuses a name that exists (some stores
ignore conditions), that an answer arrives (a write whose answer was lost may have happened), or
that a store's «conflict» means that the object is there. `create_or_compare` copes with all three:
every put of a repository goes through it.

All methods block, any thread may call them, and each ends in bounded time. Errors are subclasses of
RepositoryError; only RepositoryUnavailable is worth another try.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from raftha.errors import (
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    RepositoryConflict,
    RepositoryError,
    RepositoryUnavailable,
)

OBJECT_BYTES_MAX = 17 << 20
"""No object of a repository is larger: 16 MiB of data, and what goes around it."""
LISTED_MAX = 1_000_000
"""How many objects a listing has at most; more are an error, so that memory stays bounded."""


class ObjectInfo(NamedTuple):
    """An object as a listing shows it."""

    name: str
    size: int
    modified_us: int


class Destination(Protocol):
    """Where objects of a repository are kept. Names are relative, such as `keys/0a-1.json`."""

    @property
    def name(self) -> str:
        """The destination's name in the configuration."""
        ...

    def create(self, name: str, data: bytes | memoryview) -> None:
        """Write a new object, durable on return.

        ObjectExists if there is one, or if the store says «conflict»; then nothing has changed.
        """
        ...

    def get(self, name: str, *, size_max: int) -> bytes | memoryview:
        """Return an object; ObjectMissing; ObjectTooLarge, found before all of it is in memory."""
        ...

    def get_range(self, name: str, start: int, size: int) -> bytes | memoryview:
        """Return `size` bytes from `start` on; BackupDamaged if the object ends before."""
        ...

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Return all objects below a folder, "" or `a/b/`, sorted by name.

        Objects whose names no repository uses are left out.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete an object, durably; success if it is missing. DeletionDenied if it is locked."""
        ...

    def close(self) -> None:
        """Give up connections. No other call may follow or be under way."""
        ...


def create_or_compare(destination: Destination, name: str, data: bytes | memoryview) -> None:
    """Have `destination` hold `data` under `name`: the same call can be repeated until it returns.

    After an unclear outcome (exists already, lost answer, timeout) the object is read back. Equal
    bytes are success. RepositoryConflict if the bytes differ. RepositoryUnavailable if the object
    isn't there: the put may be tried again.
    """
    try:
        destination.create(name, data)
    except (ObjectExists, RepositoryUnavailable) as unclear:
        _compare(destination, name, data, unclear)


def _compare(
    destination: Destination, name: str, data: bytes | memoryview, unclear: RepositoryError
) -> None:
    # A difference is looked at twice: it may be the reading that went wrong.
    if any(_holds(destination, name, data, unclear) for _ in range(2)):
        return
    raise RepositoryConflict(
        "other bytes are stored under this name",
        destination=destination.name,
        object_name=name,
        hint="another cluster may write to this place: give each cluster its own prefix",
    ) from unclear


def _holds(
    destination: Destination, name: str, data: bytes | memoryview, unclear: RepositoryError
) -> bool:
    try:
        return bytes(destination.get(name, size_max=len(data))) == bytes(data)
    except ObjectTooLarge:
        return False
    except ObjectMissing:
        if isinstance(unclear, RepositoryUnavailable):
            raise unclear from None
        # S3 answers «conflict» also when two writes of one name collide, and neither has won yet.
        raise RepositoryUnavailable(
            "its store said that it exists, but it doesn't",
            destination=destination.name,
            object_name=name,
        ) from unclear
