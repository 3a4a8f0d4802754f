"""The catalog of backups: what each entry is accepted for, and what the log keeps of it."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from raftha.entry import EntryKind, LogPosition
from raftha.errors import UpgradeRequired
from raftha.storage.state import catalog as catalog_module
from raftha.storage.state.catalog import (
    COMPLETED,
    DIFFERENTIAL,
    FAILED,
    FULL,
    INCREMENTAL,
    MISSING,
    RETIRED,
    Adopt,
    BackupRecord,
    Begin,
    Catalog,
    Change,
    Deleted,
    End,
    Found,
    MarkNow,
    NotePoint,
    Pin,
    Retire,
    Unpin,
    decode_change,
    encode_change,
)
from raftha.storage.state.state import META_BEFORE, META_VERSION, META_WITH_CATALOG, State
from raftha.storage.state.versions import Versions, decode_admin, encode_versions
from tests.support.state_bench import Bench, Kit

HERE = "a" * 32
T0 = 1_764_288_000_000_000
SECOND = 1_000_000


class Log:
    """A catalog, and the entries that change it."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.index = 10

    def add(self, change: Change) -> str:
        """Apply a change; return why it was refused, or ""."""
        self.index += 10
        before = self.catalog.dump()
        change = decode_change(*decode_admin(encode_change(change)))
        at = LogPosition(self.index, 1, T0 + self.index * SECOND, 5 * self.index, bytes(16))
        self.catalog.apply(change, at)
        assert self.catalog.verdict.index == self.index
        if self.catalog.verdict.refusal:
            assert self.catalog.dump() == before, "a refused change changes nothing"
        return self.catalog.verdict.refusal

    def begin(self, mode: str = FULL, parent: int = 0, **others: Any) -> str:
        fields: dict[str, Any] = {
            "node": 2, "lineage": HERE, "destinations": ("local", "s3"), "reason": ""
        }  # fmt: skip
        return self.add(Begin(mode=mode, parent=parent, **{**fields, **others}))

    def end(self, error: str = "", **others: Any) -> str:
        return self.add(end_of(self.index, error)._replace(**others))

    def take(self, mode: str = FULL, parent: int = 0, **others: Any) -> int:
        """Have a backup completed; return its id."""
        assert self.begin(mode, parent, **others) == ""
        backup_id = self.index
        assert self.end(id=backup_id) == ""
        return backup_id

    def record(self, backup_id: int) -> BackupRecord:
        record = self.catalog.get(backup_id)
        assert record is not None
        return record

    def state(self, backup_id: int) -> str:
        return self.record(backup_id).state


def end_of(backup_id: int, error: str = "") -> End:
    return End(
        id=backup_id,
        destinations=() if error else ("local",),
        position_index=backup_id + 2,
        position_sequence=7,
        position_us=T0,
        keys=3,
        size_bytes=300,
        size_compressed=100,
        digest="ff",
        manifest=b"" if error else b"m" * 32,
        verify_level=1,
        errors=() if error else ("s3: no space",),
        error=error,
    )


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_backup_is_known_by_the_entry_that_began_it(log: Log) -> None:
    assert log.begin(reason="the first") == ""
    running = log.catalog.running
    assert running is not None
    assert (running.id, running.base, running.parent, running.node) == (20, 20, 0, 2)
    assert running.label == "20251128T000020Z-F-000000000014"
    assert log.end() == ""
    record = log.record(20)
    assert log.catalog.running is None
    assert (record.state, record.destinations, record.keys) == (COMPLETED, ("local",), 3)
    assert (record.began_us, record.ended_us) == (T0 + 20 * SECOND, T0 + 30 * SECOND)
    assert log.catalog.newest() == record


def test_only_one_backup_runs_at_a_time(log: Log) -> None:
    log.begin()
    assert log.begin() == "backup 20251128T000020Z-F-000000000014 is running"
    log.end(id=20)
    assert log.begin() == ""


def test_an_end_counts_once(log: Log) -> None:
    log.begin()
    assert log.end(id=20) == ""
    for error in ("", "it is silent"):
        assert log.add(end_of(20, error)) == "backup 20 is not running"
    assert log.state(20) == COMPLETED


def test_what_has_failed_is_not_completed_by_a_late_end(log: Log) -> None:
    log.begin()
    log.end("it is silent", id=20)
    assert log.end(id=20) == "backup 20 is not running"
    assert (log.state(20), log.record(20).error) == (FAILED, "it is silent")
    assert log.catalog.newest() is None


@pytest.mark.parametrize(
    "wrong", [{"destinations": ()}, {"destinations": ("tape",)}, {"manifest": b""}]
)
def test_a_backup_is_not_completed_without_a_destination_and_a_manifest(
    log: Log, wrong: dict[str, Any]
) -> None:
    log.begin()
    assert log.end(id=20, **wrong) == "a completed backup has a manifest in one of its destinations"
    assert log.catalog.running is not None


def test_a_backup_at_an_earlier_position_than_its_begin_is_refused(log: Log) -> None:
    log.begin()
    assert "has a manifest" in log.end(id=20, position_index=19)


def test_a_chain_has_its_full_backup_as_base(log: Log) -> None:
    full = log.take()
    first = log.take(INCREMENTAL, full)
    second = log.take(INCREMENTAL, first)
    assert [r.id for r in log.catalog.chain(second)] == [second, first, full]
    assert log.record(second).base == full
    differential = log.take(DIFFERENTIAL, full)
    assert log.record(differential).label.endswith(f"-D-{differential:012x}")


def test_a_parent_must_fit(log: Log) -> None:
    full = log.take()
    other = log.take(lineage="b" * 32)
    incremental = log.take(INCREMENTAL, full)
    log.begin()
    failed = log.index
    log.end("full disk", id=failed)
    assert "no backup 999 to build on" in log.begin(INCREMENTAL, 999)
    assert "is not whole" in log.begin(INCREMENTAL, failed)
    assert "another lineage" in log.begin(INCREMENTAL, other)
    assert "builds on a full one" in log.begin(DIFFERENTIAL, incremental)
    assert "has no parent" in log.begin(FULL, full)
    assert "has no parent" in log.begin(INCREMENTAL)
    assert "has no parent" in log.begin("page diff", full)
    assert log.begin(INCREMENTAL, incremental) == ""


def test_nothing_builds_on_a_retired_parent(log: Log) -> None:
    full, newer = log.take(), log.take()
    assert log.add(Retire((full,), HERE)) == ""
    assert "is not whole" in log.begin(INCREMENTAL, full)
    assert log.begin(INCREMENTAL, newer) == ""


def test_what_is_needed_is_not_retired(log: Log) -> None:
    full = log.take()
    child = log.take(INCREMENTAL, full)
    newest = log.take()
    assert "builds on" in log.add(Retire((full,), HERE))
    assert "newest" in log.add(Retire((newest,), HERE))
    assert "unknown" in log.add(Retire((999,), HERE))
    assert log.begin(INCREMENTAL, child) == ""
    running = log.index
    assert "builds on" in log.add(Retire((full, child), HERE))
    assert "running" in log.add(Retire((running,), HERE))
    log.end("stopped", id=running)
    assert log.add(Retire((full, child, running), HERE)) == ""
    assert {log.state(i) for i in (full, child, running)} == {RETIRED}


def test_only_backups_of_the_own_lineage_are_retired(log: Log) -> None:
    old, _ = log.take(lineage="b" * 32), log.take()
    assert "another lineage" in log.add(Retire((old,), HERE))
    assert log.add(Retire((old,), "b" * 32)) == ""


def test_a_pin_holds_a_backup_until_its_time(log: Log) -> None:
    old, _ = log.take(), log.take()
    until = T0 + (log.index + 35) * SECOND
    assert log.add(Pin(old, "audit", until)) == ""
    assert "is pinned" in log.add(Retire((old,), HERE))
    log.index += 10
    assert log.add(Retire((old,), HERE)) == ""


def test_pins_are_taken_away_by_name(log: Log) -> None:
    old, _ = log.take(), log.take()
    log.add(Pin(old, "audit", 0))
    log.add(Pin(old, "law", 0))
    assert "no pin 'other'" in log.add(Unpin(old, "other"))
    assert log.add(Unpin(old, "audit")) == ""
    assert "is pinned" in log.add(Retire((old,), HERE))
    assert log.add(Unpin(old, "")) == ""
    assert log.record(old).pins == ()
    assert "is not completed" in log.add(Pin(999, "audit", 0))
    for number in range(16):
        assert log.add(Pin(old, f"pin {number}", 0)) == ""
    assert "at most 16 pins" in log.add(Pin(old, "one more", 0))
    assert log.add(Pin(old, "pin 3", 1)) == ""


def test_only_what_is_retired_is_forgotten(log: Log) -> None:
    old, new = log.take(), log.take()
    assert "not retired" in log.add(Deleted((old,)))
    log.add(Retire((old,), HERE))
    assert "not retired" in log.add(Deleted((old, new)))
    assert log.add(Deleted((old,))) == ""
    assert [r.id for r in log.catalog.records()] == [new]
    assert log.catalog.deleted_index == log.index


def adopted(record: BackupRecord, **others: Any) -> tuple[Any, ...]:
    return tuple(record._replace(**others))


def test_what_a_repository_holds_is_adopted(log: Log) -> None:
    full = log.take()
    log.begin(INCREMENTAL, full)
    late = log.index
    log.end("it is silent", id=late)
    whole = log.record(full)._replace(
        id=late, mode=INCREMENTAL, parent=full, began_us=T0 + 40 * SECOND
    )
    assert log.add(Adopt(log.index, tuple(whole))) == ""
    assert (log.state(late), log.record(late).base) == (COMPLETED, full)
    assert "is completed" in log.add(Adopt(log.index, tuple(whole)))
    unknown = adopted(log.record(full), id=11, pins=(("x", 0),))
    assert log.add(Adopt(log.index, unknown)) == ""
    assert log.record(11).pins == ()
    other_time = adopted(whole, id=13, state=FAILED, began_us=T0)
    assert log.add(Adopt(log.index, other_time)) == ""
    assert "is 20251128T000000Z-I-00000000000d, not" in log.add(
        Adopt(log.index, adopted(whole, id=13))
    )


def test_what_does_not_fit_is_not_adopted(log: Log) -> None:
    full, _ = log.take(), log.take()
    record = log.record(full)
    log.add(Retire((full,), HERE))
    child = adopted(record, id=25, mode=INCREMENTAL, parent=full)
    assert "is not whole" in log.add(Adopt(log.index, child))
    assert "is retired" in log.add(Adopt(log.index, tuple(record)))
    assert "ended before" in log.add(Adopt(log.index, adopted(record, id=10_000)))
    assert "ended before" in log.add(Adopt(log.index, adopted(record, id=25, state=RETIRED)))
    assert "has a manifest" in log.add(Adopt(log.index, adopted(record, id=25, manifest=b"")))


def test_a_listing_from_before_a_deletion_is_not_believed(log: Log) -> None:
    old, _ = log.take(), log.take()
    record, listed = log.record(old), log.index
    log.add(Retire((old,), HERE))
    log.add(Deleted((old,)))
    assert "since the repository was listed" in log.add(Adopt(listed, tuple(record)))
    assert "was deleted" in log.add(Adopt(log.index, tuple(record)))
    assert log.add(Adopt(log.index, adopted(record, state=FAILED))) == ""
    assert log.add(Retire((old,), HERE)) == ""


def test_a_backup_that_is_nowhere_is_missing_until_it_is_found(log: Log) -> None:
    full = log.take()
    child = log.take(INCREMENTAL, full)
    assert log.add(Found(full, ())) == ""
    assert log.state(full) == MISSING
    assert "is not whole" in log.begin(INCREMENTAL, child)
    assert log.catalog.newest() is None
    assert log.add(Found(full, ("s3",))) == ""
    assert log.record(full).destinations == ("s3",)
    assert log.catalog.newest() == log.record(child)
    assert "is not completed" in log.add(Found(999, ("s3",)))


def test_marks_have_names_of_their_own(log: Log) -> None:
    assert log.add(MarkNow("before the migration")) == ""
    assert "already" in log.add(MarkNow("before the migration"))
    assert "already" in log.add(MarkNow(""))
    (mark,) = log.catalog.marks()
    assert (mark.index, mark.sequence, mark.time_us) == (20, 100, T0 + 20 * SECOND)


def test_the_catalog_is_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "RECORDS_MAX", 3)
    monkeypatch.setattr(catalog_module, "MARKS_MAX", 2)
    first, _, newest = log.take(), log.take(), log.take()
    assert "retire some" in log.begin()
    assert "retire some" in log.add(Adopt(log.index, adopted(log.record(newest), id=11)))
    log.add(Retire((first,), HERE))
    assert "retire some" in log.begin()
    log.add(Deleted((first,)))
    assert log.begin() == ""
    for name in ("a", "b", "c"):
        assert log.add(MarkNow(name)) == ""
    assert [mark.name for mark in log.catalog.marks()] == ["b", "c"]


def test_a_catalog_survives_a_checkpoint(log: Log) -> None:
    full = log.take()
    log.take(INCREMENTAL, full)
    log.add(Pin(full, "audit", 0))
    log.add(MarkNow("m"))
    log.begin()
    loaded = Catalog.load(msgpack.unpackb(msgpack.packb(log.catalog.dump())))
    assert loaded.dump() == log.catalog.dump()
    assert loaded.records() == log.catalog.records()
    assert (loaded.marks(), loaded.running) == (log.catalog.marks(), log.catalog.running)


@pytest.mark.parametrize(
    "fields",
    [
        ("restore", 1),
        ("begin", 1, FULL, 0, HERE, ["local"]),
        ("begin", -1, FULL, 0, HERE, ["local"], ""),
        ("begin", 1, FULL, 0, HERE, "local", ""),
        ("begin", 1, "x" * 501, 0, HERE, ["local"], ""),
        ("retire", 7, HERE),
        ("retire", ["7"], HERE),
        ("found", 7, [""]),
        ("adopt", 1, [1]),
        ("adopt", 1, [*range(23)]),
    ],
)
def test_an_entry_of_a_later_version_is_not_guessed_at(fields: tuple[Any, ...]) -> None:
    payload = msgpack.packb([1, *fields])
    with pytest.raises(UpgradeRequired):
        decode_change(*decode_admin(payload))


@pytest.mark.parametrize(
    "fields",
    [None, [], [1, 2, 3, 4, 5], [0, 0, [], [[1]], []], ["", 0, [], [], []], [0, 0, ["x"], [], []]],
)
def test_junk_is_no_catalog(fields: Any) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Catalog.load(fields)


# ---------------------------------------------------------------- recovery points


def point(index: int, **others: Any) -> NotePoint:
    return NotePoint(index, 0, T0, b"", 0, 3)._replace(**others)


def test_a_point_is_of_an_entry_between_the_last_one_and_its_own(log: Log) -> None:
    assert log.add(point(15)) == ""
    for index in (14, 15, 30, 31):
        log.index = 20
        assert "between" in log.add(point(index))
    assert "between" in log.add(point(35, sequence=1000))
    assert [each.index for each in log.catalog.points()] == [15]


@pytest.mark.parametrize(
    ("agreed", "voters", "is_consistent"),
    [(0, 3, False), (1, 3, False), (2, 3, True), (2, 4, False), (3, 4, True), (1, 1, True)],
)
def test_a_point_is_consistent_if_a_majority_agreed(
    log: Log, agreed: int, voters: int, is_consistent: bool
) -> None:
    digest = b"d" * 32 if agreed else b""
    assert log.add(point(15, digest=digest, agreed=agreed, voters=voters)) == ""
    assert log.catalog.points()[0].is_consistent is is_consistent


@pytest.mark.parametrize(("digest", "agreed"), [(b"", 2), (b"d" * 32, 0), (b"d" * 32, 4)])
def test_a_point_has_a_digest_if_and_only_if_members_agreed_on_it(
    log: Log, digest: bytes, agreed: int
) -> None:
    assert "agreed" in log.add(point(15, digest=digest, agreed=agreed))


def test_the_oldest_points_are_forgotten(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "POINTS_MAX", 3)
    for index in (15, 25, 35, 45):
        assert log.add(point(index)) == ""
    assert [each.index for each in log.catalog.points()] == [25, 35, 45]
    packed = msgpack.packb(log.catalog.dump(has_recovery=True))
    assert Catalog.load(msgpack.unpackb(packed)).points() == log.catalog.points()
    assert Catalog.load(log.catalog.dump()).points() == ()


# ---------------------------------------------------------------- in the state


def begin(bench: Bench) -> None:
    payload = encode_change(Begin(1, FULL, 0, HERE, ("local",), ""))
    bench.state.apply(bench.log.add(EntryKind.ADMIN, payload))


def meta_version(bench: Bench) -> int:
    meta = bench.store.meta()
    assert meta is not None
    version: int = msgpack.unpackb(meta[4:])[0]
    return version


def test_a_checkpoint_has_the_catalog() -> None:
    bench = Bench()
    begin(bench)
    bench.checkpoint()
    assert meta_version(bench) == META_VERSION
    loaded = State(bench.store, Kit())
    assert loaded.catalog.running == bench.state.catalog.running is not None


def test_the_format_before_is_written_until_all_members_know_the_catalog() -> None:
    bench = Bench()
    versions = bench.state.versions
    assert versions is not None
    bench.state.versions = versions._replace(protocol=6)
    frozen = bench.state.freeze()
    assert frozen.meta_version == META_BEFORE
    bench.store.write(frozen.items, frozen.meta)
    bench.state.checkpoint_done()
    assert meta_version(bench) == META_BEFORE
    assert State(bench.store, Kit()).catalog.records() == ()
    with pytest.raises(AssertionError, match="wait for all members"):
        begin(bench)


def test_the_catalog_begins_with_the_entry_that_raises_the_protocol() -> None:
    bench = Bench()
    bench.state.versions = Versions(6, 1, frozenset())
    payload = encode_versions(Versions(7, 1, frozenset()))
    bench.state.apply(bench.log.add(EntryKind.ADMIN, payload))
    begin(bench)
    bench.checkpoint()
    assert meta_version(bench) == META_WITH_CATALOG
    loaded = State(bench.store, Kit())
    assert loaded.catalog.running == bench.state.catalog.running is not None


def test_recovery_points_begin_with_the_entry_that_raises_the_protocol() -> None:
    bench = Bench()
    bench.state.versions = Versions(7, 1, frozenset())
    note = encode_change(NotePoint(1, 0, 10, b"", 0, 3))
    with pytest.raises(AssertionError, match="wait for all members"):
        bench.state.apply(bench.log.add(EntryKind.ADMIN, note))
    bench = Bench()
    bench.state.versions = Versions(7, 1, frozenset())
    payload = encode_versions(Versions(8, 1, frozenset()))
    bench.state.apply(bench.log.add(EntryKind.ADMIN, payload))
    bench.state.apply(bench.log.add(EntryKind.ADMIN, note))
    bench.checkpoint()
    assert meta_version(bench) == META_VERSION
    (point,) = State(bench.store, Kit()).catalog.points()
    assert point == bench.state.catalog.points()[0]
    assert (point.noted, point.index, point.is_consistent) == (3, 1, False)


def test_a_start_checks_the_changes_of_the_catalog_that_it_is_about_to_apply() -> None:
    bench = Bench()
    entry = bench.log.add(EntryKind.ADMIN, encode_change(MarkNow("m")))
    bench.state.check_supported([entry])
    later = bench.log.add(EntryKind.ADMIN, msgpack.packb([1, "restore", 6]))
    with pytest.raises(UpgradeRequired):
        bench.state.check_supported([later])


@pytest.mark.parametrize(("protocol", "has_recovery"), [(6, False), (7, False), (8, True)])
def test_what_came_with_protocol_8_waits_until_the_cluster_uses_it(
    protocol: int, has_recovery: bool
) -> None:
    bench = Bench()
    bench.state.versions = None
    assert not bench.state.has_recovery
    bench.state.apply(
        bench.log.add(EntryKind.ADMIN, encode_versions(Versions(protocol, 1, frozenset())))
    )
    assert bench.state.has_recovery is has_recovery
