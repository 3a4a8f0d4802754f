"""The order of the entries alone decides what the catalog of backups says."""

from __future__ import annotations

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from raftha.entry import LogPosition
from raftha.storage.state.catalog import (
    COMPLETED,
    DIFFERENTIAL,
    FULL,
    INCREMENTAL,
    MISSING,
    RETIRED,
    RUNNING,
    Abort,
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
    Prepare,
    Restore,
    Retire,
    Unpin,
    decode_change,
    encode_change,
)
from raftha.storage.state.versions import decode_admin

IDS = st.integers(0, 40)
LINEAGES = st.sampled_from(("a" * 32, "a" * 32, "b" * 32))
NAMES = st.sampled_from(("x", "y"))
WHERE = st.sampled_from(((), ("local",), ("local", "s3"), ("s3",)))
MODES = st.sampled_from((FULL, INCREMENTAL, DIFFERENTIAL))


def adopt(as_of: int, backup_id: int, mode: str, parent: int, lineage: str, state: str) -> Adopt:
    record = BackupRecord(
        backup_id, mode, parent, 0, lineage, 1, state, ("local",), 5, manifest=b"m"
    )
    return Adopt(as_of, tuple(record))


CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(Begin, st.just(1), MODES, IDS, LINEAGES, WHERE, st.just("")),
    st.builds(
        Begin, st.just(1), st.just(FULL), st.just(0), LINEAGES, st.just(("s3",)), st.just("")
    ),
    st.builds(
        lambda backup_id, where, error: End(
            backup_id, where, backup_id, 0, 0, 0, 0, 0, "", b"m", 1, (), error
        ),
        IDS,
        WHERE,
        st.sampled_from(("", "", "failed")),
    ),
    st.builds(adopt, IDS, IDS, MODES, IDS, LINEAGES, st.sampled_from((COMPLETED, "failed"))),
    st.builds(Found, IDS, WHERE),
    st.builds(Retire, st.lists(IDS, max_size=3).map(tuple), LINEAGES),
    st.builds(Deleted, st.lists(IDS, max_size=2).map(tuple)),
    st.builds(Pin, IDS, NAMES, st.integers(0, 40)),
    st.builds(Unpin, IDS, NAMES),
    st.builds(MarkNow, NAMES),
    st.builds(
        lambda to, backups: Prepare(7, "a" * 32, to, 1, backups, 0, 60, ""),
        IDS,
        st.lists(IDS, max_size=2).map(tuple),
    ),
    st.builds(Restore, IDS, st.sampled_from(("", "d"))),
    st.builds(Abort, IDS, NAMES),
    st.builds(
        lambda index, agreed: NotePoint(index, 0, index, b"d" * agreed, agreed, 3),
        IDS,
        st.integers(0, 3),
    ),
)
LOGS = st.lists(st.tuples(CHANGES, st.booleans()), max_size=40)


def position(index: int) -> LogPosition:
    return LogPosition(index, 1, index, index, bytes(16))


def check(catalog: Catalog, before: dict[int, BackupRecord], change: Change) -> None:
    """What must hold after each entry."""
    now = {record.id: record for record in catalog.records()}
    running = [record for record in now.values() if record.state == RUNNING]
    assert len(running) <= 1
    assert catalog.running == (running[0] if running else None)
    for record in now.values():
        if record.state == RUNNING or (record.state == COMPLETED and record.parent):
            parent = now[record.parent] if record.parent else record
            assert parent.state in (RUNNING, COMPLETED, MISSING), "it builds on what is given up"
            assert parent.lineage == record.lineage and parent.base == record.base
        if record.state == RETIRED and before[record.id].state != RETIRED:
            assert isinstance(change, Retire)
        was_retired = record.id in before and before[record.id].state == RETIRED
        assert not was_retired or record.state == RETIRED
    if catalog.recoveries.prepared is not None:
        assert not running, "the members have the disk for one state more"
        assert all(r.state != RETIRED or before[r.id].state == RETIRED for r in now.values())
    for gone in before.keys() - now.keys():
        assert before[gone].state == RETIRED, "it is forgotten while its objects exist"
    noted = [point.index for point in catalog.points()]
    assert noted == sorted(set(noted))
    restorable = [r for r in before.values() if r.state == COMPLETED]
    if restorable and not any(r.state == COMPLETED for r in now.values()):
        assert isinstance(change, Found), "the last backup is given up"


@given(LOGS)
def test_all_replicas_have_the_same_catalog(log: list[tuple[Change, bool]]) -> None:
    """One applies each entry, another starts from a checkpoint now and then."""
    one, other = Catalog(), Catalog()
    for index, (change, restarts) in enumerate(log, start=1):
        before = {record.id: record for record in one.records()}
        payload = encode_change(change)
        for catalog in (one, other):
            catalog.apply(decode_change(*decode_admin(payload)), position(index))
        assert one.verdict == other.verdict
        assert one.dump(has_recovery=True) == other.dump(has_recovery=True)
        check(one, before, change)
        if restarts:
            other = Catalog.load(msgpack.unpackb(msgpack.packb(other.dump(has_recovery=True))))
