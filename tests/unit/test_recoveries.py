"""What the log says of recoveries, and the state behind a RESTORE entry."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from raftha.entry import Entry, EntryKind, make_entry
from raftha.errors import UpgradeRequired
from raftha.storage.state import recoveries as recoveries_module
from raftha.storage.state.catalog import (
    FULL,
    INCREMENTAL,
    Abort,
    Begin,
    Catalog,
    Change,
    Deleted,
    End,
    Prepare,
    Restore,
    Retire,
    encode_change,
)
from raftha.storage.state.commands import pack_put
from raftha.storage.state.recoveries import ABORTED, PREPARED, RESTORED, Recoveries
from raftha.storage.state.restored import meta_behind, restore_of, wanted_restore
from raftha.storage.state.state import State
from raftha.storage.state.versions import Versions
from tests.sim.store import DictStore
from tests.support.entries import group
from tests.support.state_bench import Bench, Kit

HERE = "a" * 32


def prepare(to_sequence: int = 1, **others: Any) -> Prepare:
    fields: dict[str, Any] = {
        "request": 7, "lineage": HERE, "to_sequence": to_sequence, "to_us": 5, "backups": (),
        "is_frozen": 0, "timeout_s": 60, "reason": "sequence 1",
    }  # fmt: skip
    return Prepare(**{**fields, **others})


class Scene:
    """A state with a session, and the entries that it applies."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.state = self.bench.state
        for value in (b"1", b"2", b"3"):
            self.bench.do(pack_put(b"key", value))

    @property
    def recoveries(self) -> Recoveries:
        return self.state.catalog.recoveries

    def admin(self, change: Change) -> str:
        """Apply a change of the catalog; return why it is refused, or ""."""
        self.state.apply(self.bench.log.add(EntryKind.ADMIN, encode_change(change)))
        return self.state.catalog.verdict.refusal

    def prepare(self, to_sequence: int = 1, **others: Any) -> int:
        assert self.admin(prepare(to_sequence, **others)) == ""
        return self.state.applied.index

    def restore(self, recovery_id: int, digest: str = "d") -> Entry:
        payload = encode_change(Restore(recovery_id, digest))
        log = self.bench.log
        entry = make_entry(log.last, 1, 2_000_000, EntryKind.RESTORE, payload, 1)
        log.entries.append(entry)
        return entry

    def take_backup(self) -> int:
        assert self.admin(Begin(1, FULL, 0, HERE, ("local",), "")) == ""
        backup_id = self.state.applied.index
        end = End(backup_id, ("local",), backup_id, 0, 0, 0, 0, 0, "", b"m", 1, (), "")
        assert self.admin(end) == ""
        return backup_id


@pytest.fixture
def scene() -> Scene:
    return Scene()


# ---------------------------------------------------------------- what is accepted


def test_one_recovery_at_a_time_is_under_way_until_it_is_aborted(scene: Scene) -> None:
    recovery_id = scene.prepare(2, reason="undo")
    assert "sequence 2 is under way" in scene.admin(prepare(1))
    record = scene.recoveries.prepared
    assert record is not None and record == scene.recoveries.by_request(7)
    assert (record.id, record.state, record.to_sequence) == (recovery_id, PREPARED, 2)
    assert "is not under way" in scene.admin(Abort(recovery_id + 1, "x"))
    assert scene.admin(Abort(recovery_id, "the repository is away")) == ""
    assert scene.recoveries.prepared is None
    aborted = scene.recoveries.get(recovery_id)
    assert aborted is not None
    assert (aborted.state, aborted.error) == (ABORTED, "the repository is away")
    assert scene.admin(prepare(1, request=8)) == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"to_sequence": 4},
        {"lineage": ""},
        {"timeout_s": 0},
        {"timeout_s": 10**9},
        {"is_frozen": 2},
        {"backups": (3,)},
    ],
)
def test_a_recovery_needs_a_past_moment_and_backups_that_are_there(
    scene: Scene, wrong: dict[str, Any]
) -> None:
    assert scene.admin(prepare(**{"to_sequence": 1, **wrong}))
    assert scene.recoveries.records() == ()


def test_backups_and_recoveries_exclude_each_other(scene: Scene) -> None:
    """What the plan reads must not go, and the members have the disk for one state more."""
    backup_id = scene.take_backup()
    newest = scene.take_backup()
    begin = Begin(1, FULL, 0, HERE, ("local",), "")
    assert scene.admin(begin) == ""
    running = scene.state.applied.index
    assert "is running" in scene.admin(prepare(1))
    assert scene.admin(End(running, (), 0, 0, 0, 0, 0, 0, "", b"", 0, (), "it had to")) == ""
    scene.prepare(1, backups=(backup_id, newest))
    assert "a recovery to sequence 1" in scene.admin(begin)
    assert "a recovery to sequence 1" in scene.admin(Retire((backup_id,), HERE))
    assert scene.admin(Deleted((backup_id,)))


def test_no_backup_builds_on_one_from_before_a_restore(scene: Scene) -> None:
    """The changes since then aren't those that the log counts."""
    backup_id = scene.take_backup()
    entry = scene.restore(scene.prepare())
    image = DictStore()
    image.write([(b"key", b"1")], meta_behind(scene.state, entry))
    scene.bench.state = scene.state = State(image, Kit())
    incremental = Begin(1, INCREMENTAL, backup_id, HERE, ("local",), "")
    assert "was replaced since" in scene.admin(incremental)
    newer = scene.take_backup()
    assert scene.admin(incremental._replace(parent=newer)) == ""


def test_what_is_deleted_or_retired_is_no_source(scene: Scene) -> None:
    backup_id = scene.take_backup()
    scene.take_backup()
    assert scene.admin(Retire((backup_id,), HERE)) == ""
    assert "is not completed" in scene.admin(prepare(1, backups=(backup_id,)))


def test_the_oldest_recoveries_are_forgotten(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recoveries_module, "RECOVERIES_MAX", 2)
    ids = []
    for _ in range(3):
        ids.append(scene.prepare())
        scene.admin(Abort(ids[-1], "x"))
    assert [record.id for record in scene.recoveries.records()] == ids[1:]


# ---------------------------------------------------------------- behind a restore


def test_a_refused_restore_is_a_command_that_changes_nothing(scene: Scene) -> None:
    recovery_id = scene.prepare()
    assert scene.admin(Abort(recovery_id, "x")) == ""
    entry = scene.restore(recovery_id)
    assert wanted_restore(scene.state, entry) is None
    scene.state.apply(entry)
    assert "is not under way" in scene.state.catalog.verdict.refusal
    assert scene.state.applied.last_sequence == 4
    assert scene.state.get(b"key") == b"3"


def test_a_state_cannot_apply_a_restore_that_is_accepted(scene: Scene) -> None:
    entry = scene.restore(scene.prepare())
    with pytest.raises(AssertionError, match="the pairs are others"):
        scene.state.apply(entry)


def test_behind_a_restore_everything_but_the_pairs_goes_on(scene: Scene) -> None:
    recovery_id = scene.prepare(1)
    entry = scene.restore(recovery_id, "digest")
    found = wanted_restore(scene.state, entry)
    assert found is not None
    assert (found[0], found[1].id) == (Restore(recovery_id, "digest"), recovery_id)
    before = scene.state.applied
    meta = meta_behind(scene.state, entry)
    assert scene.state.applied == before
    assert scene.state.catalog.recoveries.prepared is not None, "this state is as it was"

    image = DictStore()
    image.write([(b"key", b"1")], meta)
    state = State(image, Kit())
    assert state.applied == entry.position
    assert state.applied.last_sequence == before.last_sequence + 1
    assert state.versions == scene.state.versions
    assert state.get(b"key") == b"1"
    record = state.catalog.recoveries.last_restored
    assert record is not None
    assert (record.id, record.state, record.digest) == (recovery_id, RESTORED, "digest")
    assert (record.index, record.sequence, record.undone) == (entry.index, 4, 2)
    # A write that was undone isn't applied again when its client repeats it.
    log = scene.bench.log
    repeated = group(scene.bench.session, 3, [pack_put(b"key", b"3")])
    (applied,) = state.apply(log.batch(repeated))
    assert applied.outcome.first_sequence == 3
    assert state.get(b"key") == b"1"


def test_recoveries_are_part_of_the_checkpoint(scene: Scene) -> None:
    scene.admin(Abort(scene.prepare(2), "x"))
    scene.prepare(1, backups=(), is_frozen=1)
    scene.bench.checkpoint()
    loaded = State(scene.bench.store, Kit())
    assert loaded.catalog.recoveries.records() == scene.recoveries.records()
    assert loaded.catalog.recoveries.prepared is not None
    loaded.catalog.forget_running()
    assert loaded.catalog.recoveries.prepared is None, "as of a restore into another cluster"


@pytest.mark.parametrize("broken", [{"state": "x"}, {"id": "x"}, {"backups": ("x",)}])
def test_a_broken_record_is_refused(scene: Scene, broken: dict[str, Any]) -> None:
    scene.admin(Abort(scene.prepare(), "x"))
    (record,) = scene.recoveries.records()
    fields = Catalog().dump(has_recovery=True)
    fields[-1] = [record._replace(**broken)]
    with pytest.raises(ValueError, match=r"a recovery has no such state|wrong field|numbers"):
        Catalog.load(msgpack.unpackb(msgpack.packb(fields)))


def test_two_recoveries_under_way_are_refused(scene: Scene) -> None:
    scene.prepare()
    (record,) = scene.recoveries.records()
    with pytest.raises(ValueError, match="one recovery"):
        Recoveries.load([tuple(record), tuple(record._replace(id=record.id + 1))])


# ---------------------------------------------------------------- as entries


def test_recoveries_wait_for_all_members_to_know_them(scene: Scene) -> None:
    versions = scene.state.versions
    assert versions is not None
    scene.state.versions = Versions(7, versions.machine, versions.commands)
    entry = scene.bench.log.add(EntryKind.ADMIN, encode_change(prepare()))
    with pytest.raises(AssertionError, match="wait for all members"):
        scene.state.apply(entry)


def test_a_restore_is_an_entry_of_its_own_kind(scene: Scene) -> None:
    restore = scene.bench.log.add(EntryKind.ADMIN, encode_change(Restore(1, "d")))
    with pytest.raises(UpgradeRequired, match="not of that kind"):
        scene.state.apply(restore)
    scene = Scene()
    other = scene.bench.log.add(EntryKind.RESTORE, encode_change(Abort(1, "x")))
    with pytest.raises(UpgradeRequired, match="restores nothing"):
        scene.state.check_supported([other])
    with pytest.raises(UpgradeRequired, match="restores nothing"):
        restore_of(other)
    scene.state.check_supported([scene.restore(1)])
