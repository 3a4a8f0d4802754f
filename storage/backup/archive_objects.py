"""The objects of the archive in one destination: put, compared, read, and found elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from raftha.entry import Entry
from raftha.errors import (
    BackupDamaged,
    ObjectExists,
    ObjectMissing,
    RepositoryConflict,
    RepositoryUnavailable,
)
from raftha.storage.backup import names
from raftha.storage.backup.archive_listing import Listed, read_listing
from raftha.storage.backup.archive_records import GapRecord, RestoreRecord
from raftha.storage.backup.crypto import DataKey, KeyRing
from raftha.storage.backup.destination import OBJECT_BYTES_MAX, Destination, create_or_compare
from raftha.storage.backup.names import GapName, SegmentName, segment_name
from raftha.storage.backup.segments import encode_segment, name_of, read_segment

LEVELS = (1, 3)
"""How hard segments of level 0 and 1 are compressed at most: the first ones stay for minutes."""
SPARE_BYTES = 1 << 20


class Access(NamedTuple):
    """A destination that is open, and the keys of its repository."""

    destination: Destination
    key: DataKey | None
    keys: KeyRing


class ArchiveObjects:
    """One lineage's objects in one destination, as one job sees them."""

    def __init__(
        self,
        access: Access,
        lineage: str,
        *,
        level: int,
        salt: Callable[[], bytes | None],
        others: Callable[[], Sequence[Destination]],
        restores: Sequence[RestoreRecord],
        on_error: Callable[[Exception], None],
    ) -> None:
        """`level` is our level of compression, `others` are the other destinations.

        `restores`: each gets its record before the segment that has its entry.

        `on_error` gets the errors that the job goes on after.
        """
        self.lineage = lineage
        self._access = access
        self._level = level
        self._salt = salt
        self._others = others
        self._restores = restores
        self._on_error = on_error
        self._listings: dict[str, Listed] = {}

    def find(self) -> Listed:
        """List the archive. Its holes are those of which no record says that they are gaps."""
        found = self._access.destination.list(names.log_folder(self.lineage))
        listed = read_listing(found, self.lineage)
        if not listed.holes:
            return listed
        gaps = self._access.destination.list(names.gaps_folder(self.lineage))
        return listed.without_gaps(gaps)

    def store(self, level: int, entries: Sequence[Entry]) -> tuple[SegmentName, int]:
        """Put a segment, or a part of it if it is too large for an object; return name and size.

        RepositoryConflict; RepositoryUnavailable if it isn't known to be there.
        """
        name = name_of(self.lineage, level, entries)
        key, compression = self._access.key, min(self._level, LEVELS[level])
        data = encode_segment(name, entries, key, compression, salt=self._salt())
        if len(data) > OBJECT_BYTES_MAX - SPARE_BYTES and len(entries) > 1:
            return self.store(level, entries[: len(entries) // 2])
        for record in self._restores:
            if name.first <= record.index <= name.last:
                create_or_compare(self._access.destination, record.name, record.encode())
        try:
            self._access.destination.create(segment_name(name), data)
        except (ObjectExists, RepositoryUnavailable) as unclear:
            try:
                self.compare(name, entries[-1].hash)
            except RepositoryUnavailable as error:
                raise error from unclear
        return name, len(data)

    def compare(self, name: SegmentName, last_hash: bytes) -> None:
        """Return if a segment is there, and its entries end with this hash.

        Bytes may differ: another archiver has another salt, and perhaps another version of zstd. An
        equal hash of the last entry means equal entries. RepositoryConflict if it differs;
        RepositoryUnavailable if the object is missing, or damaged: then it is deleted, so that it
        can be put again.
        """
        object_name = segment_name(name)
        try:
            try:
                found = self._get(name)
            except BackupDamaged:
                found = self._get(name)  # It may be the reading that went wrong.
        except ObjectMissing as error:
            raise self._unavailable("a segment is not there", object_name) from error
        except BackupDamaged as error:
            self._access.destination.delete(object_name)
            raise self._unavailable(f"a segment is damaged: {error}", object_name) from error
        if found[-1].hash != last_hash:
            raise self.conflict(name.last, object_name)

    def _get(self, name: SegmentName) -> list[Entry]:
        data = self._access.destination.get(segment_name(name), size_max=OBJECT_BYTES_MAX)
        return read_segment(data, name, self._access.keys)

    def read(self, name: SegmentName) -> list[Entry]:
        """Return a segment's entries; none if the object is damaged or gone."""
        return self._read(self._access.destination, name)

    def _read(self, destination: Destination, name: SegmentName) -> list[Entry]:
        try:
            data = destination.get(segment_name(name), size_max=OBJECT_BYTES_MAX)
            return read_segment(data, name, self._access.keys)
        except (BackupDamaged, ObjectMissing) as error:
            self._on_error(error)
            return []

    def elsewhere(self, first: int, last: int, *, asks_all: bool) -> list[Entry]:
        """Return entries from `first` to `last`, as many as an object of another destination has.

        None if no other destination has entry `first`. With `asks_all`, RepositoryUnavailable if
        one that may have it can't be asked.
        """
        unavailable: RepositoryUnavailable | None = None
        for other in self._others():
            try:
                for name in self._covering(other, first):
                    found = self._read(other, name)
                    entries = [entry for entry in found if first <= entry.index <= last]
                    if entries:
                        return entries
            except RepositoryUnavailable as error:
                unavailable = error
        if unavailable is not None and asks_all:
            raise unavailable
        return []

    def _covering(self, other: Destination, index: int) -> list[SegmentName]:
        """The segments there that have this entry, the best first. Listed once in a job."""
        if other.name not in self._listings:
            found = other.list(names.log_folder(self.lineage))
            self._listings[other.name] = read_listing(found, self.lineage)
        there = (name for name in self._listings[other.name].sizes if name.first <= index)
        return sorted((n for n in there if index <= n.last), key=lambda name: -name.last)

    def record_gap(self, first: int, last: int) -> None:
        """Say that these entries are missing."""
        gap = GapName(self.lineage, first, last)
        create_or_compare(self._access.destination, names.gap_name(gap), GapRecord(*gap).encode())

    def delete(self, name: SegmentName) -> None:
        """Delete a segment; DeletionDenied."""
        self._access.destination.delete(segment_name(name))

    def conflict(self, index: int, object_name: str = "") -> RepositoryConflict:
        """Entry `index` is another one there than here."""
        return RepositoryConflict(
            f"entry {index} of the archive is not the one of this log",
            destination=self._access.destination.name,
            object_name=object_name or names.log_folder(self.lineage).removesuffix("/"),
            hint="a copy of this cluster writes to the same place: give each its own prefix",
        )

    def _unavailable(self, message: str, object_name: str) -> RepositoryUnavailable:
        return RepositoryUnavailable(
            message, destination=self._access.destination.name, object_name=object_name
        )
