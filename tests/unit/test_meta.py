"""A checkpoint's meta, as backups read and move it."""

from __future__ import annotations

import zlib

import msgpack
import pytest

from raftha.entry import LogPosition
from raftha.storage.state.catalog import Begin, Catalog
from raftha.storage.state.meta import move_meta, read_meta
from raftha.storage.state.state import State
from tests.sim.store import DictStore
from tests.support.backups import BackedUpNode


def packed(*fields: object) -> bytes:
    whole: bytes = msgpack.packb(fields)
    return zlib.crc32(whole).to_bytes(4, "little") + whole


def test_the_meta_of_a_state_is_read_and_moved() -> None:
    node = BackedUpNode()
    node.write({b"a": b"1"})
    node.checkpoint()
    meta = node.store.meta()
    assert meta is not None
    facts = read_meta(meta)
    assert (facts.position, facts.membership) == (node.state.applied, node.state.membership)
    position = facts.position._replace(last_sequence=77, hash=bytes(16))
    store = DictStore()
    store.write([], move_meta(meta, position, b"others"))
    state = State(store)
    assert (state.applied, state.membership) == (position, b"others")
    assert (state.session_count, state.versions) == (1, node.state.versions)


@pytest.mark.parametrize("has_recovery", [False, True])
def test_a_restored_state_has_no_backup_that_runs(has_recovery: bool) -> None:
    """Else a restored cluster would wait for the end of the backup that it came from."""
    catalog = Catalog()
    at = LogPosition(5, 1, 10, 0, bytes(16))
    catalog.apply(Begin(1, "full", 0, "a" * 32, ("local",), ""), at)
    assert catalog.running is not None
    dumped = catalog.dump(has_recovery=has_recovery)
    meta = packed(7, POSITION, None, [], None, dumped)
    moved = msgpack.unpackb(move_meta(meta, at, b"")[4:])
    restored = Catalog.load(moved[-1])
    assert (restored.running, restored.records()) == (None, ())
    assert len(moved[-1]) == len(dumped)


POSITION = [1, 2, 3, 4, bytes(16)]


@pytest.mark.parametrize(
    "meta",
    [
        b"",
        b"1234",
        packed(),
        packed(5, POSITION),
        packed("5", POSITION, None, None),
        packed(5, POSITION[:4], None, None),
        packed(5, [*POSITION[:4], "x"], None, None),
        packed(5, [-1, *POSITION[1:]], None, None),
        packed(5, POSITION, "x", None),
        packed(5, POSITION, None, None)[:-1],
    ],
)
def test_what_is_no_meta_is_refused(meta: bytes) -> None:
    with pytest.raises(ValueError, match="meta"):
        read_meta(meta)
    with pytest.raises(ValueError, match="meta"):
        move_meta(meta, LogPosition(1, 2, 3, 4, bytes(16)), b"")
