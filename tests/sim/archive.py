"""The archive of the log in the simulation: the real code of a node's archive threads.

What must hold, by the committed log (`invariants.py`), in each bucket, but for what rot has hit:

    committed     what is archived are committed entries, with the same hash (I1)
    claimed       what a result calls archived is there, or a gap's record explains it (I4); what it
                  calls verified can be read
    gaps          what is missing in the end between what is there has a record; a gap is recorded
                  before anything later is put
    level 0       none goes before level 1 has its entries
    bounded       no member keeps more log for the archive than its limit (I6)
    recovery      when all faults are over, all of the log gets archived, in each bucket (I8), and a
                  backup comes after the last gap
    versions      nothing is archived before all members know how
    points        a recovery point is noted once a bucket has its log
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from raftha.entry import Entry
from raftha.errors import BackupDamaged
from raftha.node.backup import archive_leading, archiving
from raftha.storage.backup import archive, names
from raftha.storage.backup.archive import (
    ArchiveHooks,
    ArchiveOrder,
    ArchiveResult,
    DestinationArchive,
)
from raftha.storage.backup.archive_listing import Listed, read_listing
from raftha.storage.backup.archive_objects import Access
from raftha.storage.backup.crypto import NO_KEYS
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.segments import read_segment
from raftha.storage.directory import replay
from raftha.storage.directory.replay import read_from
from raftha.storage.state import catalog
from tests.sim.jobs import Job
from tests.sim.planting import Patch
from tests.sim.repository import Bucket, TrueClient
from tests.sim.world import Violation, World

if TYPE_CHECKING:
    from tests.sim.member import Member

HASTE: list[Patch] = [
    (archive_leading, "REPORT_S", 0.1),
    (archiving, "REPORT_S", 0.1),
    (archive_leading, "SILENCE_S", 0.4),
    (archive_leading, "LOST_S", 0.8),
    (archive_leading, "FAILED_S", 0.5),
    (archive_leading, "AVOID_S", 1.0),
    (archive_leading, "MARK_S", 0.5),
    (archive_leading, "MARK_AGAIN_S", 1000.0),
    (archiving, "ORDERED_S", 0.5),
    (archiving, "TIDY_S", 0.2),
    (archiving, "RETRY_MAX_S", 0.3),
    (archiving, "CONFLICT_S", 0.5),
    (archiving, "LAGGING_S", 1.0),
    (archiving, "SEGMENT_RAW_BYTES", 3000),
    (archive, "SEGMENT_RAW_BYTES", 3000),
    (archive, "MERGED_RAW_BYTES", 20_000),
    (archive, "MERGE_STORED_BYTES", 8000),
    (archive, "MERGE_S", 0.3),
    (archive, "MERGE_COUNT", 3),
    (archive, "STAYS_S", 0.3),
    (archive, "GIVE_UP_S", 1.0),
    (archive, "DENIED_S", 0.5),
    (archive, "PUTS_MAX", 4),
    (replay, "READ_BYTES", 4000),
]


class SimulatedArchive:
    """One member's `ArchiveWork`, in one life."""

    def __init__(
        self,
        member: Member,
        world: World,
        make: Callable[[], Repository],
        start: Callable[[Callable[[Job], ArchiveResult], Callable[[ArchiveResult], None]], Job],
        watch: ArchiveWatch | None,
    ) -> None:
        """`make` opens the repository; `start` begins a job."""
        self._member = member
        self._watch = watch
        self._start = start
        self._make = make
        self._repository: Repository | None = None
        self._archives: dict[str, DestinationArchive] = {}
        wal = member.wal
        assert wal is not None and member.config.backup is not None
        for name in member.config.backup.destinations:
            hooks = ArchiveHooks(
                partial(read_from, wal), lambda: world.now, others=partial(self._others, name)
            )
            self._archives[name] = DestinationArchive(partial(self._open, name), hooks, level=1)

    def _open(self, name: str) -> Access:
        if self._repository is None:
            self._repository = self._make()
        repository = self._repository
        if name not in repository.destinations:
            repository.retry_one(name)
        if name not in repository.destinations:
            raise repository.failed[name]
        return Access(repository.destinations[name], repository.key, repository.keys)

    def _others(self, name: str) -> Sequence[Destination]:
        there = self._repository.destinations if self._repository is not None else {}
        return [destination for key, destination in there.items() if key != name]

    def put(
        self, destination: str, order: ArchiveOrder, done: Callable[[ArchiveResult], None]
    ) -> None:
        self._run(destination, order, self._archives[destination].put, done)

    def tidy(
        self, destination: str, order: ArchiveOrder, done: Callable[[ArchiveResult], None]
    ) -> None:
        self._run(destination, order, self._archives[destination].tidy, done)

    def _run(
        self,
        destination: str,
        order: ArchiveOrder,
        work: Callable[[ArchiveOrder], ArchiveResult],
        done: Callable[[ArchiveResult], None],
    ) -> None:
        def run(job: Job) -> ArchiveResult:
            result = work(order)
            if self._watch is not None and not self._member.is_outcast:
                self._watch.check_claim(destination, order.lineage, result)
            return result

        self._start(run, done)


class ArchiveWatch:
    """What must hold of the archive of a simulated cluster."""

    def __init__(
        self,
        world: World,
        buckets: Sequence[Bucket],
        committed: list[Entry],
        lineage: Callable[[], str],
    ) -> None:
        """`lineage` returns the cluster's own at present; a lone survivor may begin another."""
        self.window_index = 0
        """No recovery in the window needs earlier entries."""
        self._put: dict[str, int] = {}
        """The last entry that was put into any bucket, by lineage."""
        self._world = world
        self._buckets = {bucket.name: bucket for bucket in buckets}
        self._committed = committed
        self._lineage_of = lineage

    @property
    def _lineage(self) -> str:
        return self._lineage_of()

    def on_create(self, bucket: Bucket, name: str, data: bytes, protocol: int) -> None:
        """An object of the archive is put; `data` is what the member has sent."""
        lineage = name.partition("/")[0]
        if "/log/" not in name:
            self._world.counts["gap recorded"] += "/gaps/" in name
            return
        if lineage != self._lineage:
            return
        if protocol < catalog.RECOVERY_PROTOCOL:
            raise Violation(f"{name} is of a protocol that not all members speak")
        segment = names.parse_segment_name(name)
        self._note(bucket, "put", segment)
        self._put[lineage] = max(self._put.get(lineage, 0), segment.last)
        self._world.counts[f"segment of level {segment.level}"] += 1
        for entry in read_segment(data, segment, NO_KEYS):
            if entry.index > len(self._committed):
                raise Violation(f"entry {entry.index} is archived, and is not committed")
            is_forged = any(entry.hash in each.forged_hashes for each in self._buckets.values())
            if entry.hash != self._committed[entry.index - 1].hash and not is_forged:
                raise Violation(f"another entry {entry.index} is archived than was committed")
        missing = self._missing(bucket, self._listed(bucket))
        if missing:
            first = min(missing)
            raise Violation(f"{name} is put in {bucket.name}, and entry {first} is not there")

    def _note(self, bucket: Bucket, what: str, segment: names.SegmentName) -> None:
        entries = f"{segment.first} to {segment.last} of level {segment.level}"
        self._world.note(0, "archive", f"{bucket.name} {what} {entries}")

    def on_delete(self, bucket: Bucket, name: str) -> None:
        """A segment is about to be deleted: level 1 has its entries, or the window doesn't."""
        segment = names.parse_segment_name(name)
        self._note(bucket, "delete", segment)
        if segment.level or segment.lineage != self._lineage or name in bucket.damaged:
            return
        listed = self._listed(bucket)
        others = _covered(other for other in listed.sizes if other != segment)
        lost = set(range(segment.first, segment.last + 1)) - others
        if lost and not self._is_readable(bucket, name):
            return  # It was written wrongly, and is put again.
        lost -= set(range(1, self.window_index)) | self._hit(bucket)
        if lost:
            raise Violation(f"{name} is deleted from {bucket.name}, and nothing else has it")

    def _is_readable(self, bucket: Bucket, name: str) -> bool:
        try:
            read_segment(bucket.objects[name].data, names.parse_segment_name(name), NO_KEYS)
        except BackupDamaged:
            return False
        return True

    def _listed(self, bucket: Bucket) -> Listed:
        client = TrueClient(bucket)
        listed = read_listing(client.list(names.log_folder(self._lineage)), self._lineage)
        return listed.without_gaps(client.list(names.gaps_folder(self._lineage)))

    def _missing(self, bucket: Bucket, listed: Listed) -> set[int]:
        """What lies between what is there, has no record, and was not hit by rot."""
        missing = {i for first, last in listed.holes for i in range(first, last + 1)}
        return missing - self._hit(bucket)

    def _hit(self, bucket: Bucket) -> set[int]:
        """The entries of segments that rot or loss has hit, or that were written wrongly."""
        return self._entries(bucket.damaged | bucket.bad_writes)

    def _entries(self, objects: Iterable[str]) -> set[int]:
        """The entries of those of these objects that are segments."""
        folder = names.log_folder(self._lineage)
        found = (name for name in objects if name.startswith(folder))
        return _covered(map(names.parse_segment_name, found))

    def check_claim(self, destination: str, lineage: str, result: ArchiveResult) -> None:
        """What a member calls archived is there, and what it calls verified can be read."""
        self._world.counts["gap reported"] += len(result.gaps)
        self._world.counts["archive refused"] += bool(result.error)
        self._world.counts["archive conflict"] += bool(result.conflict)
        if lineage != self._lineage or not result.archived.index:
            return
        bucket = self._buckets[destination]
        listed = self._listed(bucket)
        first = max(result.start, listed.start and min(listed.sizes).first, 1)
        # A member whose log begins later can't tell, and one that has found it says so.
        forged = set() if result.needs or result.error else bucket.forged
        there = self._entries(bucket.objects.keys() - forged) | self._hit(bucket)
        for gap_first, gap_last in listed.gaps:
            there |= set(range(gap_first, gap_last + 1))
        missing = set(range(first, result.archived.index + 1)) - there
        if missing:
            raise Violation(
                f"entry {min(missing)} is called archived up to {result.archived.index}, and is "
                f"not in {destination}"
            )
        bad = self._entries(bucket.bad_writes) - self._entries(bucket.damaged)
        bad -= self._entries(bucket.objects.keys() - bucket.bad_writes)
        unread = {index for index in bad if first <= index <= result.verified}
        if unread:
            raise Violation(f"entry {min(unread)} is called verified, and can't be read")

    def check_point(self, index: int) -> None:
        """A recovery point of this entry is noted: it can be restored if all members are lost."""
        self._world.counts["recovery point"] += 1
        if index > self._put.get(self._lineage, 0):
            raise Violation(f"entry {index} is called a recovery point, and no bucket has it")

    def clean(self) -> None:
        """An operator removes what a copy of the cluster has put, and what was copied from it."""
        forged = {each for bucket in self._buckets.values() for each in bucket.forged_hashes}
        for bucket in self._buckets.values():
            for name in [name for name in bucket.objects if "/log/" in name]:
                if self._is_readable(bucket, name):
                    segment = names.parse_segment_name(name)
                    entries = read_segment(bucket.objects[name].data, segment, NO_KEYS)
                    if any(entry.hash in forged for entry in entries):
                        del bucket.objects[name]
                        bucket.damaged.add(name)

    def lacking(self, newest_position: int) -> str:
        """What is not archived yet in the end, or leads on from no backup; "" if nothing is."""
        starts = [self._listed(bucket).start for bucket in self._buckets.values()]
        if min(starts) > newest_position + 1:
            return f"a backup at or after entry {min(starts) - 1}, where the archive begins again"
        for bucket in self._buckets.values():
            newest = self._listed(bucket).newest
            last = newest.last if newest else 0
            if last < len(self._committed):
                return f"{bucket.name} has the log up to {last} of {len(self._committed)}"
        return ""

    def verdict(self) -> None:
        """The run is over: each hole has its record."""
        for bucket in self._buckets.values():
            missing = self._missing(bucket, self._listed(bucket))
            if missing:
                raise Violation(f"entry {min(missing)} is missing in {bucket.name}, unrecorded")
        self._world.counts["archive whole"] += 1


def _covered(segments: Iterable[names.SegmentName]) -> set[int]:
    return {index for name in segments for index in range(name.first, name.last + 1)}
