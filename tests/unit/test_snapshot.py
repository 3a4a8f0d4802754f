"""Snapshots as files: made, sent in chunks, received, checked, installed, stopped at each step."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard

from raftha.entry import LOG_START, Entry, EntryKind, Group, HardState, encode_group, make_entry
from raftha.errors import Corrupt, StorageFailed
from raftha.storage.directory import snapshot as module
from raftha.storage.directory.replay import entries_after
from raftha.storage.directory.snapshot import (
    CHUNK_BYTES,
    Chunk,
    Incoming,
    Outgoing,
    SnapshotFile,
    install,
    pack_chunk,
    unpack_chunk,
)
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.wal import Wal
from raftha.storage.state import lmdb_file
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.commands import pack_put
from raftha.storage.state.state import State
from tests.sim.store import DictStore
from tests.support.rot import rot


def make_log(count: int, term: int = 1) -> list[Entry]:
    """A session's opening, then puts of k0, k1 ..."""
    entries: list[Entry] = []
    session = 0
    for i in range(count):
        last = entries[-1].position if entries else LOG_START
        group = Group(0, 1, 0, 0, b"")
        if i:
            command = pack_put(b"k%d" % i, Random(i).randbytes(20_000), 1 << 20)
            group = Group(session, i, 1, 1, command)
        payload = encode_group(group)
        entries.append(make_entry(last, term, 1, EntryKind.BATCH, payload, group.count))
        if i == 0:
            session = State(DictStore()).apply(entries[0])[0].outcome.session
    return entries


def write_state(folder: Path, entries: list[Entry]) -> None:
    store = CheckpointStore(folder)
    state = State(store)
    for entry in entries:
        state.apply(entry)
    frozen = state.freeze()
    store.write(frozen.items, frozen.meta)
    store.close()


def open_wal(data: Path) -> Wal:
    salt = iter(range(1 + Random().getrandbits(62), 1 << 63))
    path = str(data / "wal")
    return Wal.open(RealDisk(), path, segment_bytes=1 << 20, salt=lambda: next(salt))


@pytest.fixture
def snapshot(tmp_path: Path) -> tuple[Outgoing, SnapshotFile]:
    """A snapshot as of entry 60."""
    write_state(tmp_path / "leader", make_log(60))
    store = CheckpointStore(tmp_path / "leader")
    outgoing = Outgoing(tmp_path / "outgoing")
    made = outgoing.make(store, 7, lambda size: None)
    store.close()
    return outgoing, made


def receive(incoming: Incoming, outgoing: Outgoing, snapshot: SnapshotFile) -> None:
    has = incoming.begin(snapshot.snapshot_id, snapshot.size, snapshot.sha256)
    while has < snapshot.size:
        chunk = outgoing.read(snapshot.snapshot_id, has)
        assert chunk is not None
        has = incoming.write(chunk)


def test_a_snapshot_is_whole_and_knows_its_position(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path
) -> None:
    outgoing, made = snapshot
    assert made.position == make_log(60)[-1].position
    assert made.size > 2 * CHUNK_BYTES
    incoming = Incoming(tmp_path / "node" / "incoming")
    (tmp_path / "node").mkdir()
    receive(incoming, outgoing, made)
    assert incoming.check(made.sha256, 60)
    assert not incoming.check(made.sha256, 59), "it isn't as of the entry that was announced"
    outgoing.drop(made.snapshot_id)
    assert outgoing.read(made.snapshot_id, 0) is None
    assert not list((tmp_path / "outgoing").iterdir())


def test_receiving_resumes_and_restarts_with_another_snapshot(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path
) -> None:
    outgoing, made = snapshot
    incoming = Incoming(tmp_path / "incoming")
    assert incoming.begin(7, made.size, made.sha256) == 0
    chunk = outgoing.read(7, 0)
    assert chunk is not None
    assert incoming.write(chunk) == CHUNK_BYTES
    assert Incoming(tmp_path / "incoming").begin(7, made.size, made.sha256) == CHUNK_BYTES
    assert incoming.begin(8, made.size, made.sha256) == 0


def test_a_damaged_chunk_is_not_written(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path
) -> None:
    outgoing, made = snapshot
    incoming = Incoming(tmp_path / "incoming")
    incoming.begin(7, made.size, made.sha256)
    chunk = outgoing.read(7, 0)
    assert chunk is not None
    for place in range(0, len(chunk.data), 997):
        data = bytearray(chunk.data)
        data[place] ^= 1
        if unpack_chunk(chunk._replace(data=bytes(data))) is not None:
            # A bit that zstd ignores: the decompressed data is unchanged.
            assert unpack_chunk(chunk._replace(data=bytes(data))) == unpack_chunk(chunk)
    assert incoming.write(chunk._replace(crc=chunk.crc ^ 1)) == 0
    assert incoming.write(chunk) == CHUNK_BYTES


@pytest.mark.parametrize(
    "data",
    [b"", b"junk", zstandard.compress(bytes(CHUNK_BYTES + 1)), zstandard.compress(b"x")[:-1]],
    ids=["empty", "junk", "too large", "cut"],
)
def test_an_impossible_chunk_is_refused(data: bytes) -> None:
    assert unpack_chunk(Chunk(0, 0, data)) is None


def test_a_chunk_comes_out_as_it_went_in() -> None:
    for data in (b"x", bytes(CHUNK_BYTES), os.urandom(CHUNK_BYTES)):
        assert unpack_chunk(pack_chunk(5, data)) == data


def test_a_damaged_snapshot_is_refused(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path
) -> None:
    outgoing, made = snapshot
    incoming = Incoming(tmp_path / "incoming")
    receive(incoming, outgoing, made)
    path = tmp_path / "incoming" / "image" / "data.mdb"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not incoming.check(made.sha256, 60)
    path.write_bytes(content[:-4096])
    assert not incoming.check(made.sha256, 60)
    assert not (tmp_path / "incoming" / "READY").exists()


class Stop(BaseException):
    """The power went."""


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> Callable[[], int]:
    """Raise Stop at the `count`th step of what follows; returns how many steps there were."""
    steps = 0

    def counted(original: Callable[..., Any], *, is_after: bool) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == count and not is_after:
                raise Stop
            result = original(*args, **keywords)
            if steps == count:
                raise Stop
            return result

        return call

    for is_after in (False, True):
        monkeypatch.setattr(Wal, "reset", counted(Wal.reset, is_after=is_after))
        monkeypatch.setattr(Path, "rename", counted(Path.rename, is_after=is_after))
        monkeypatch.setattr(Path, "unlink", counted(Path.unlink, is_after=is_after))
        monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree, is_after=is_after))
    return lambda: steps


def prepare(tmp_path: Path, snapshot: tuple[Outgoing, SnapshotFile]) -> Path:
    """A follower with 5 entries, of which 3 are in its state, and a ready snapshot."""
    data = tmp_path / "follower"
    data.mkdir()
    write_state(data / "state", make_log(3))
    wal = open_wal(data)
    wal.append(HardState(4, 2, 3), make_log(5))
    wal.close()
    receive(Incoming(data / "incoming"), *snapshot)
    assert Incoming(data / "incoming").check(snapshot[1].sha256, 60)
    return data


def check_installed(data: Path, snapshot: SnapshotFile) -> None:
    wal = open_wal(data)
    assert not install(data, wal), "once is enough"
    assert (wal.base, wal.last_index) == (snapshot.position, 60)
    assert wal.hard_state == HardState(4, 2, 60)
    store = CheckpointStore(data / "state")
    state = State(store)
    assert entries_after(wal, state.applied, data) == []
    assert state.get(b"k59") == Random(59).randbytes(20_000)
    store.close()
    wal.close()
    assert {path.name for path in data.iterdir()} == {"wal", "state"}


def test_a_snapshot_takes_the_place_of_log_and_state(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path
) -> None:
    data = prepare(tmp_path, snapshot)
    wal = open_wal(data)
    assert install(data, wal)
    wal.close()
    check_installed(data, snapshot[1])


@pytest.mark.slow
def test_an_installation_stopped_at_any_step_is_finished_at_the_next_start(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path
) -> None:
    prepared = prepare(tmp_path, snapshot)
    count = 0
    while True:
        count += 1
        data = tmp_path / f"try-{count}"
        shutil.copytree(prepared, data)
        wal = open_wal(data)
        with pytest.MonkeyPatch.context() as patch:
            steps = stop_at(patch, count)
            with contextlib.suppress(Stop):
                install(data, wal)
        wal.close()
        wal = open_wal(data)
        install(data, wal)
        wal.close()
        check_installed(data, snapshot[1])
        shutil.rmtree(data)
        if steps() < count:
            break
    assert count > 12


@pytest.mark.parametrize("content", ["{}", "[]", '{"position": [1, 2]}', "\udcff"])
def test_a_damaged_mark_of_a_received_snapshot_is_no_damage_to_log_and_state(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path, content: str
) -> None:
    data = prepare(tmp_path, snapshot)
    (data / "incoming" / "READY").write_text(content, errors="surrogateescape")
    wal = open_wal(data)
    before = wal.base, wal.last
    assert not install(data, wal)
    assert (wal.base, wal.last) == before
    wal.close()


def test_a_snapshot_is_not_installed_over_a_log_that_holds_its_last_entry(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path
) -> None:
    """Entries after it may have been acknowledged since READY was written."""
    data = prepare(tmp_path, snapshot)
    wal = open_wal(data)
    wal.append(None, make_log(70)[5:])
    assert not install(data, wal)
    assert wal.last_index == 70
    wal.close()
    assert {path.name for path in data.iterdir()} == {"wal", "state"}


def test_a_snapshot_is_installed_over_a_log_whose_entries_differ(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path
) -> None:
    data = prepare(tmp_path, snapshot)
    wal = open_wal(data)
    other = make_log(70, term=3)
    wal.append(None, other)
    wal.append(HardState(4, 2, 0), ())
    assert install(data, wal)
    wal.close()
    check_installed(data, snapshot[1])


def test_a_snapshot_is_not_installed_if_its_entry_is_committed_or_applied(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path
) -> None:
    _, made = snapshot
    data = prepare(tmp_path, snapshot)
    wal = open_wal(data)
    assert module.is_needed(wal, LOG_START, made.position)
    assert not module.is_needed(wal, made.position, made.position)
    wal.append(HardState(4, 2, 60), ())
    assert not module.is_needed(wal, LOG_START, made.position)
    wal.close()


def test_a_copy_does_not_hold_off_checkpoints(tmp_path: Path) -> None:
    """A checkpoint is written while a snapshot is copied; only a larger map would have to wait."""
    write_state(tmp_path / "state", make_log(20))
    store = CheckpointStore(tmp_path / "state")
    with store._copier:
        store.write([(b"a", b"b")], store.meta() or b"")
    assert store.get(b"a") == b"b"
    store.close()


def test_a_snapshot_of_a_state_with_a_damaged_value_is_not_made(tmp_path: Path) -> None:
    write_state(tmp_path / "state", make_log(20))
    store = CheckpointStore(tmp_path / "state")
    rot(store, b"k7")
    outgoing = Outgoing(tmp_path / "outgoing")
    with pytest.raises(Corrupt, match=b"k7".hex()) as caught:
        outgoing.make(store, 7, lambda size: None)
    assert caught.value.path.is_relative_to(tmp_path / "state"), "the state is damaged, so it heals"
    assert not list((tmp_path / "outgoing").iterdir())
    store.close()


def test_a_snapshot_that_lacks_keys_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(tmp_path / "state", make_log(20))
    store = CheckpointStore(tmp_path / "state")
    census = CheckpointStore.census
    more = lambda self, keys: census(self, keys)._replace(entries=99)  # noqa: E731
    monkeypatch.setattr(CheckpointStore, "census", more)
    with pytest.raises(StorageFailed, match="should have 99 keys, and 19 are found"):
        Outgoing(tmp_path / "outgoing").make(store, 7, lambda size: None)
    store.close()


def test_a_copy_that_is_damaged_by_itself_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(tmp_path / "state", make_log(20))
    store = CheckpointStore(tmp_path / "state")
    outgoing = Outgoing(tmp_path / "outgoing")
    content = Random(7).randbytes(20_000)  # The value of k7, which a page's end may split.
    copy = CheckpointStore.copy

    def damage(self: CheckpointStore, take: Callable[[bytes], None]) -> None:
        pieces: list[bytes] = []
        copy(self, pieces.append)
        whole = bytearray(b"".join(pieces))
        whole[whole.index(content[:100])] ^= 1
        take(bytes(whole))

    monkeypatch.setattr(CheckpointStore, "copy", damage)
    with pytest.raises(StorageFailed, match="the copy is damaged"):
        outgoing.make(store, 7, lambda size: None)
    monkeypatch.undo()
    assert outgoing.make(store, 8, lambda size: None).position.index == 20
    store.close()


def test_an_installed_snapshot_was_verified_once(
    snapshot: tuple[Outgoing, SnapshotFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(tmp_path, snapshot)
    wal = open_wal(data)
    monkeypatch.setattr(lmdb_file, "verify", lambda path: ["it was verified again"])
    assert install(data, wal)
    CheckpointStore(data / "state").close()
    wal.close()


# ---------------------------------------------------------------- over a log with a RESTORE


def with_restore(tmp_path: Path) -> tuple[Path, SnapshotFile, list[Entry]]:
    """A state in front of the RESTORE at 4, in a log up to 9; and a READY snapshot as of 6."""
    log = make_log(3)
    for number in range(4, 10):
        kind, count = (EntryKind.RESTORE, 1) if number == 4 else (EntryKind.NOOP, 0)
        log.append(make_entry(log[-1].position, 1, 1, kind, b"", count))
    state = State(DictStore())
    for entry in log[:3]:
        state.apply(entry)
    store = CheckpointStore(tmp_path / "leader")
    frozen = state.freeze()
    frozen.position = log[5].position
    store.write([(b"then", b"1")], frozen.meta)
    outgoing = Outgoing(tmp_path / "outgoing")
    made = outgoing.make(store, 7, lambda size: None)
    store.close()
    data = tmp_path / "node"
    data.mkdir()
    write_state(data / "state", log[:3])
    wal = open_wal(data)
    wal.append(HardState(1, 2, 9), log)
    wal.close()
    incoming = Incoming(data / "incoming")
    receive(incoming, outgoing, made)
    assert incoming.check(made.sha256, 6)
    return data, made, log


@pytest.mark.slow
def test_a_state_in_front_of_a_restore_is_replaced_and_the_log_stays(tmp_path: Path) -> None:
    """Whatever step is the last: entries behind the snapshot may have been acknowledged."""
    prepared, made, log = with_restore(tmp_path)
    count = 0
    while True:
        count += 1
        data = tmp_path / f"try-{count}"
        shutil.copytree(prepared, data)
        wal = open_wal(data)
        with pytest.MonkeyPatch.context() as patch:
            steps = stop_at(patch, count)
            with contextlib.suppress(Stop):
                assert install(data, wal)
        install(data, wal)
        assert (wal.base, wal.last) == (LOG_START, log[-1].position)
        store = CheckpointStore(data / "state")
        state = State(store)
        assert state.applied == made.position
        assert state.get(b"then") == b"1"
        assert [e.index for e in entries_after(wal, state.applied, data)] == [7, 8, 9]
        store.close()
        wal.close()
        shutil.rmtree(data)
        if steps() < count:
            break
    assert count > 6


def test_a_restore_behind_the_snapshot_is_no_reason_to_install_it(tmp_path: Path) -> None:
    data, made, log = with_restore(tmp_path)
    wal = open_wal(data)
    assert module.is_needed(wal, log[2].position, made.position)
    assert not module.is_needed(wal, log[3].position, made.position), "the state is behind it"
    assert not module.is_needed(wal, LOG_START, log[2].position), "the snapshot is before it"
    wal.close()
