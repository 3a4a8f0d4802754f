"""What the archive says beside entries: gaps, and restores. The same bytes from any archiver."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from raftha.storage.backup import names
from raftha.storage.backup.crypto import ID_BYTES
from raftha.storage.backup.documents import hex_of, number_of, text_of, write_json
from raftha.storage.backup.names import GapName, RestoreName
from raftha.storage.backup.repository_records import FORMAT, checked, document_of

_NUMBER_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class GapRecord:
    """Entries that no member had any more when they were to be archived."""

    lineage: str
    first: int
    last: int

    def encode(self) -> bytes:
        """Return the object's bytes."""
        return write_json({"format": FORMAT, **asdict(self)})

    @classmethod
    def decode(cls, data: bytes | memoryview, destination: str, name: str) -> GapRecord:
        """Read the object of this name; BackupDamaged."""
        with checked(destination, name):
            found = document_of(data, destination, name)
            record = cls(
                hex_of(found, "lineage", ID_BYTES).hex(),
                number_of(found, "first", 1, _NUMBER_MAX),
                number_of(found, "last", 1, _NUMBER_MAX),
            )
            if names.gap_name(GapName(record.lineage, record.first, record.last)) != name:
                raise ValueError("it is the record of another gap")
            return record


@dataclass(frozen=True, slots=True)
class RestoreRecord:
    """The RESTORE entry at `index`: the state behind it is the one of `to_sequence`."""

    lineage: str
    index: int
    sequence: int
    to_sequence: int
    digest: str
    time_us: int

    @property
    def name(self) -> str:
        """The object's name."""
        return names.restore_name(
            RestoreName(self.lineage, self.index, self.sequence, self.to_sequence, self.time_us)
        )

    def encode(self) -> bytes:
        """Return the object's bytes."""
        return write_json({"format": FORMAT, **asdict(self)})

    @classmethod
    def decode(cls, data: bytes | memoryview, destination: str, name: str) -> RestoreRecord:
        """Read the object of this name; BackupDamaged."""
        with checked(destination, name):
            found = document_of(data, destination, name)
            record = cls(
                lineage=hex_of(found, "lineage", ID_BYTES).hex(),
                index=number_of(found, "index", 1, _NUMBER_MAX),
                sequence=number_of(found, "sequence", 1, _NUMBER_MAX),
                to_sequence=number_of(found, "to_sequence", 0, _NUMBER_MAX),
                digest=text_of(found, "digest"),
                time_us=number_of(found, "time_us", 0, _NUMBER_MAX),
            )
            if record.name != name:
                raise ValueError("it is the record of another restore")
            return record
