"""What a repository says about itself and its lineages: two small JSON objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raftha.errors import BackupDamaged, ObjectTooLarge, RepositoryError
from raftha.storage.backup import names
from raftha.storage.backup.crypto import ID_BYTES
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.documents import (
    DOCUMENT_BYTES_MAX,
    hex_of,
    number_of,
    parse_json,
    text_of,
    write_json,
)

FORMAT = 1
ENCRYPTION = "aes-256-gcm"
_TIME_US_MAX = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryRecord:
    """The content of repository.json."""

    repository_id: str
    is_encrypted: bool
    created_us: int

    def encode(self) -> bytes:
        """Return the object's bytes."""
        return write_json(
            {
                "format": FORMAT,
                "id": self.repository_id,
                "encryption": ENCRYPTION if self.is_encrypted else "none",
                "created_us": self.created_us,
            }
        )

    @classmethod
    def decode(cls, data: bytes | memoryview, destination: str) -> RepositoryRecord:
        """Read the object; BackupDamaged, or RepositoryError for a format of later versions."""
        with checked(destination, names.repository_name()):
            found = document_of(data, destination, names.repository_name())
            encryption = text_of(found, "encryption")
            if encryption not in ("none", ENCRYPTION):
                raise ValueError(f"its encryption is unknown: {encryption!a}")
            return cls(
                repository_id=hex_of(found, "id", ID_BYTES).hex(),
                is_encrypted=encryption == ENCRYPTION,
                created_us=number_of(found, "created_us", 0, _TIME_US_MAX),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageRecord:
    """The description of a lineage: the history that the objects in its folder belong to.

    `parent` is the lineage that this one forked from, "" for the first; then `fork_index`,
    `fork_sequence` and `fork_hash` say where.
    """

    lineage: str
    parent: str
    fork_index: int
    fork_sequence: int
    fork_hash: str
    reason: str
    cluster_name: str
    created_us: int

    def encode(self) -> bytes:
        """Return the object's bytes."""
        return write_json(
            {
                "format": FORMAT,
                "lineage": self.lineage,
                "parent": self.parent,
                "fork_index": self.fork_index,
                "fork_sequence": self.fork_sequence,
                "fork_hash": self.fork_hash,
                "reason": self.reason,
                "cluster_name": self.cluster_name,
                "created_us": self.created_us,
            }
        )

    @classmethod
    def decode(cls, data: bytes | memoryview, destination: str, name: str) -> LineageRecord:
        """Read the object; BackupDamaged, or RepositoryError for a format of later versions."""
        with checked(destination, name):
            found = document_of(data, destination, name)
            record = cls(
                lineage=hex_of(found, "lineage", ID_BYTES).hex(),
                parent=hex_of(found, "parent", ID_BYTES).hex() if found.get("parent") else "",
                fork_index=number_of(found, "fork_index", 0, 1 << 62),
                fork_sequence=number_of(found, "fork_sequence", 0, 1 << 62),
                fork_hash=text_of(found, "fork_hash", 64),
                reason=text_of(found, "reason"),
                cluster_name=text_of(found, "cluster_name"),
                created_us=number_of(found, "created_us", 0, _TIME_US_MAX),
            )
            if names.lineage_name(record.lineage) != name:
                raise ValueError("it describes another lineage")
            return record


def get_document(destination: Destination, name: str) -> bytes | memoryview:
    """Read a small object; BackupDamaged if it isn't small."""
    try:
        return destination.get(name, size_max=DOCUMENT_BYTES_MAX)
    except ObjectTooLarge as error:
        raise BackupDamaged(
            "it is too large", destination=destination.name, object_name=name
        ) from error


def document_of(data: bytes | memoryview, destination: str, name: str) -> Mapping[str, Any]:
    """Read a document of a format that this version knows; ValueError if it is none."""
    found = parse_json(data)
    later = number_of(found, "format", 1, 1 << 31)
    if later > FORMAT:
        raise RepositoryError(
            f"its format is {later}; this raftha reads {FORMAT}",
            destination=destination,
            object_name=name,
            hint="install a later version of raftha",
        )
    return found


@contextmanager
def checked(destination: str, name: str) -> Iterator[None]:
    """Turn a ValueError into BackupDamaged."""
    try:
        yield
    except ValueError as error:
        raise BackupDamaged(str(error), destination=destination, object_name=name) from error
