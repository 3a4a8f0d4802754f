"""A backup repository in the simulation: buckets that are slow, away, wrong, and rot.

Theory of operation. A `Bucket` holds objects for all members. A member's job has a `BucketClient`,
which is a `Destination`; each call takes time, and may fail before or after its effect. What it
does wrong is drawn by the seed:

    outages            calls fail for a while
    lost answers       a call fails although it has had its effect
    ignored conditions `create` overwrites what is there
    bad writes         an object has other bytes than were written
    late listings      new objects are not listed yet
    rot, loss          an object changes, or vanishes, long after it was written

Rot and loss are noted: what they have hit counts for nothing. All else the backups must cope with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from raftha.entry import EntryKind, LogPosition, make_entry
from raftha.errors import (
    BackupDamaged,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    RepositoryUnavailable,
)
from raftha.storage.backup.crypto import NO_KEYS
from raftha.storage.backup.destination import ObjectInfo
from raftha.storage.backup.names import check_folder, check_name, parse_segment_name
from raftha.storage.backup.segments import encode_segment, read_segment
from tests.sim.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSwarm:
    """What a seed with backups has. Times are in seconds; 0 for "every" means never."""

    destinations: int
    interval_s: float
    mode: str
    keep_last: int
    backup_from: tuple[str, ...]
    spool_bytes: int
    delay_s: float
    failure_chance: float
    lost_answer_chance: float
    ignores_conditions: bool
    bad_write_chance: float
    late_listing_s: float
    outage_every_s: float
    outage_s: float
    rot_every_s: float
    trigger_every_s: float
    shares_prefix: bool
    """Whether another cluster's backups are in the same place."""
    archives: bool
    archive_interval_ms: int
    forgery_chance: float
    """How often other entries lie under a segment's name, put by a copy of the cluster."""
    archive_backlog_bytes: int
    """What members keep for the archive: little enough that there are gaps, or enough for all."""


def draw_backups(rng: Random) -> BackupSwarm:
    """Draw what the repository does wrong: half of the faults are off in most seeds."""
    return BackupSwarm(
        destinations=rng.choice((1, 1, 2)),
        interval_s=rng.choice((0.3, 0.6, 1.0)),
        mode=rng.choice(("full", "incremental", "incremental", "incremental", "differential")),
        keep_last=rng.choice((1, 2, 3)),
        backup_from=rng.choice(
            (("standby", "follower", "leader"), ("leader",), ("follower", "leader"))
        ),
        spool_bytes=rng.choice((0, 3000, 1 << 20, 1 << 20)),
        delay_s=rng.choice((0.0005, 0.005, 0.03)),
        failure_chance=rng.choice((0.0, 0.0, 0.05)),
        lost_answer_chance=rng.choice((0.0, 0.0, 0.1)),
        ignores_conditions=rng.random() < 0.4,
        bad_write_chance=rng.choice((0.0, 0.0, 0.05, 0.15)),
        late_listing_s=rng.choice((0.0, 0.0, 0.2)),
        outage_every_s=rng.choice((0.0, 0.0, 1.5)),
        outage_s=rng.choice((0.2, 1.0)),
        rot_every_s=rng.choice((0.0, 0.0, 0.7)),
        trigger_every_s=rng.choice((0.0, 0.5)),
        shares_prefix=rng.random() < 0.3,
        archives=rng.random() < 0.8,
        archive_interval_ms=rng.choice((50, 100, 300)),
        forgery_chance=rng.choice((0.0, 0.0, 0.0, 0.03)),
        archive_backlog_bytes=rng.choice((3000, 20_000, 1 << 40, 1 << 40)),
    )


@dataclass(slots=True)
class _Object:
    data: bytes
    written_at: float


class Bucket:
    """What one destination holds."""

    def __init__(self, world: World, swarm: BackupSwarm, name: str) -> None:
        self.name = name
        self.objects: dict[str, _Object] = {}
        self.damaged: set[str] = set()
        """The objects that rot or loss has hit, after they were written."""
        self.bad_writes: set[str] = set()
        """Those that have other bytes than were sent."""
        self.forged: set[str] = set()
        """Those that another cluster has put under names of this one."""
        self.forged_hashes: set[bytes] = set()
        """Of their last entries. A member whose log begins later can't tell, and may copy them."""
        self.on_create: Callable[[Bucket, str, bytes], None] = lambda bucket, name, data: None
        self.on_delete: Callable[[Bucket, str], None] = lambda bucket, name: None
        self._world = world
        self._swarm = swarm
        self._rng = world.stream(f"bucket {name}")
        self._away_until = 0.0
        self._is_calm = False
        if swarm.outage_every_s:
            self._wait_outage()
        if swarm.rot_every_s:
            self._wait_rot()

    def calm(self) -> None:
        """From now on it works."""
        self._is_calm = True
        self._away_until = 0.0
        for name in self.forged:
            self.objects.pop(name, None)
        self.damaged |= self.forged  # An operator has removed them: nothing else is there.
        self.forged.clear()

    def _wait_outage(self) -> None:
        self._world.at(self._rng.expovariate(1 / self._swarm.outage_every_s), self._go_away)

    def _go_away(self) -> None:
        if not self._is_calm:
            self._away_until = self._world.now + self._rng.expovariate(1 / self._swarm.outage_s)
            self._world.note(0, "bucket away", self.name)
            self._wait_outage()

    def _wait_rot(self) -> None:
        self._world.at(self._rng.expovariate(1 / self._swarm.rot_every_s), self._rot)

    def _rot(self) -> None:
        if self._is_calm:
            return
        self._wait_rot()
        names = sorted(filter(_is_data, self.objects))
        if not names:
            return
        name = self._rng.choice(names)
        self.damaged.add(name)
        if self._rng.random() < 0.5:
            del self.objects[name]
            self._world.note(0, "object vanished", f"{self.name} {name}")
        else:
            self.objects[name].data = _changed(self.objects[name].data, self._rng)
            self._world.note(0, "object rotten", f"{self.name} {name}")

    # ---------------------------------------------------------------- calls

    def pick_delay(self) -> float:
        """How long half a call takes."""
        return self._rng.uniform(0.2, 1.8) * self._swarm.delay_s / 2

    def fails(self) -> bool:
        """Whether a call fails before it has had an effect."""
        if self._world.now < self._away_until:
            return True
        return not self._is_calm and self._rng.random() < self._swarm.failure_chance

    def loses_answer(self) -> bool:
        """Whether a call fails after it has had its effect."""
        return not self._is_calm and self._rng.random() < self._swarm.lost_answer_chance

    def create(self, name: str, data: bytes) -> None:
        """Write an object; the store may do it wrong."""
        if "/log/0/" in name and name not in self.objects and not self._is_calm:
            self._forge(name, data)
        if name in self.objects:
            if not self._swarm.ignores_conditions:
                raise ObjectExists("it exists", destination=self.name, object_name=name)
            self._world.counts["object overwritten"] += self.objects[name].data != data
        sent = data
        if (
            _is_data(name)
            and not self._is_calm
            and self._rng.random() < self._swarm.bad_write_chance
        ):
            data = _changed(data, self._rng)
            self._world.note(0, "bad write", f"{self.name} {name}")
        self.objects[name] = _Object(data, self._world.now)
        self.damaged.discard(name)
        self.forged.discard(name)
        self.bad_writes.discard(name)
        if data != sent:
            self.bad_writes.add(name)
        self.on_create(self, name, sent)

    def _forge(self, name: str, data: bytes) -> None:
        """A copy of the cluster, which has gone on by itself, may have been here before."""
        if self._rng.random() < self._swarm.forgery_chance:
            forged, last_hash = _forged(name, data)
            self.objects[name] = _Object(forged, self._world.now)
            self.forged_hashes.add(last_hash)
            self.forged.add(name)
            self._world.note(0, "forged object", f"{self.name} {name}")
            self._world.counts["forged object"] += 1

    def find(self, name: str) -> bytes:
        """The bytes of an object."""
        if name not in self.objects:
            raise ObjectMissing("it is missing", destination=self.name, object_name=name)
        return self.objects[name].data

    def list(self, prefix: str) -> list[ObjectInfo]:
        """What is listed by now."""
        late_s = 0.0 if self._is_calm else self._swarm.late_listing_s
        return sorted(
            ObjectInfo(name, len(found.data), round(found.written_at * 1e6))
            for name, found in self.objects.items()
            if name.startswith(prefix) and self._world.now - found.written_at >= late_s
        )

    def delete(self, name: str) -> None:
        """Delete an object."""
        if name in self.objects:
            self.on_delete(self, name)
            self._world.counts["object deleted"] += 1
            del self.objects[name]
            self.bad_writes.discard(name)


def _forged(name: str, data: bytes) -> tuple[bytes, bytes]:
    """A segment of this name whose last entry is another one, and the hash of that."""
    segment = parse_segment_name(name)
    entries = read_segment(data, segment, NO_KEYS)
    last = entries[-1]
    header = (last.index, last.term, last.time_us, last.last_sequence)
    before = entries[-2].position if len(entries) > 1 else LogPosition(last.index - 1, 0, 0, 0, b"")
    count = last.last_sequence - before.last_sequence
    other = make_entry(before, last.term, last.time_us, EntryKind.NOOP, b"forged", count)
    assert other[:4] == header
    return encode_segment(segment, [*entries[:-1], other], None, 1), other.hash


def _is_data(name: str) -> bool:
    return "/backups/" in name or "/log/" in name


def _changed(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


class BucketClient:
    """A member's `Destination`; `sleep` lets virtual time pass in the job that calls."""

    def __init__(self, bucket: Bucket, sleep: Callable[[float], None]) -> None:
        self._bucket = bucket
        self._sleep = sleep

    @property
    def name(self) -> str:
        return self._bucket.name

    def create(self, name: str, data: bytes | memoryview) -> None:
        check_name(name)
        self._begin(name)
        self._bucket.create(name, bytes(data))
        self._finish(name)

    def get(self, name: str, *, size_max: int) -> bytes:
        check_name(name)
        self._begin(name)
        data = self._bucket.find(name)
        if len(data) > size_max:
            raise ObjectTooLarge("too large", destination=self.name, object_name=name)
        self._finish(name)
        return data

    def get_range(self, name: str, start: int, size: int) -> bytes:
        check_name(name)
        self._begin(name)
        data = self._bucket.find(name)[start : start + size]
        if len(data) != size:
            raise BackupDamaged("it ends before", destination=self.name, object_name=name)
        self._finish(name)
        return data

    def list(self, prefix: str) -> list[ObjectInfo]:
        self._begin(prefix)
        found = self._bucket.list("".join(f"{part}/" for part in check_folder(prefix)))
        self._finish(prefix)
        return found

    def delete(self, name: str) -> None:
        check_name(name)
        self._begin(name)
        self._bucket.delete(name)
        self._finish(name)

    def close(self) -> None: ...

    def _begin(self, name: str) -> None:
        self._sleep(self._bucket.pick_delay())
        if self._bucket.fails():
            raise RepositoryUnavailable("no route", destination=self.name, object_name=name)

    def _finish(self, name: str) -> None:
        self._sleep(self._bucket.pick_delay())
        if self._bucket.loses_answer():
            raise RepositoryUnavailable("no answer", destination=self.name, object_name=name)


class TrueClient:
    """A `Destination` that shows what a bucket holds, at once and without faults."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @property
    def name(self) -> str:
        return self._bucket.name

    def create(self, name: str, data: bytes | memoryview) -> None:
        raise AssertionError("it is for reading only")

    def get(self, name: str, *, size_max: int) -> bytes:
        return self._bucket.find(name)

    def get_range(self, name: str, start: int, size: int) -> bytes:
        return self._bucket.find(name)[start : start + size]

    def list(self, prefix: str) -> list[ObjectInfo]:
        return sorted(
            ObjectInfo(name, len(found.data), 0)
            for name, found in self._bucket.objects.items()
            if name.startswith(prefix)
        )

    def delete(self, name: str) -> None:
        raise AssertionError("it is for reading only")

    def close(self) -> None: ...
