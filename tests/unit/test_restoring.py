"""A prepared state takes the place of the state, also if each step of that is interrupted."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from raftha.entry import EntryKind, LogPosition, make_entry
from raftha.storage.directory import restoring
from raftha.storage.directory.restoring import PreparedState, Restoring, finish
from raftha.storage.files import sync_folder
from raftha.storage.state.builder import StoreBuilder
from raftha.storage.state.catalog import Prepare, Restore, encode_change
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.commands import pack_put
from raftha.storage.state.restored import meta_behind
from raftha.storage.state.state import State
from tests.support.state_bench import Bench
from tests.unit.test_snapshot import Stop, stop_at

THEN = {b"key": b"then", b"kept": b"1"}


def build_image(folder: Path, pairs: dict[bytes, bytes]) -> None:
    builder = StoreBuilder(folder)
    builder.append([sorted(pairs.items())])
    builder.finish(b"")


class Scene:
    """A data directory whose state stands in front of a RESTORE, with the state of then beside."""

    def __init__(self, data: Path) -> None:
        self.data = data
        data.mkdir()
        sync_folder(data.parent)
        self.restoring = Restoring(data)
        store = CheckpointStore(data / "state")
        bench = Bench(store)
        for value in (b"1", b"2", b"3"):
            bench.do(pack_put(b"key", value))
        prepare = Prepare(7, "a" * 32, 1, 1, (), 0, 60, "")
        bench.state.apply(bench.log.add(EntryKind.ADMIN, encode_change(prepare)))
        self.recovery_id = bench.state.applied.index
        bench.checkpoint()
        payload = encode_change(Restore(self.recovery_id, "d"))
        entry = make_entry(bench.log.last, 1, 2_000_000, EntryKind.RESTORE, payload, 1)
        self.before, self.behind = bench.state.applied, entry.position
        self.meta = meta_behind(bench.state, entry)
        store.close()

    def prepare(self) -> None:
        build_image(self.restoring.begin(self.recovery_id) / "state", THEN)
        self.restoring.complete(PreparedState(self.recovery_id, "d", len(THEN)))

    def mark_ready(self) -> None:
        self.restoring.mark_ready(self.recovery_id, self.meta)


def found_in(data: Path) -> tuple[LogPosition, dict[bytes, bytes]]:
    store = CheckpointStore(data / "state")
    try:
        state = State(store)
        return state.applied, dict(state.scan(limit=100))
    finally:
        store.close()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "1")


def names_in(data: Path) -> set[str]:
    return {path.name for path in data.iterdir()}


def test_a_prepared_state_is_found_once_it_is_whole(scene: Scene) -> None:
    assert scene.restoring.found() is None
    folder = scene.restoring.begin(scene.recovery_id)
    assert not list(folder.iterdir())
    build_image(folder / "state", THEN)
    build_image(folder / "source", THEN)
    assert Restoring(scene.data).found() is None
    prepared = PreparedState(scene.recovery_id, "d", 2)
    scene.restoring.complete(prepared)
    assert Restoring(scene.data).found() == prepared
    assert names_in(folder) == {"state", "PREPARED"}
    assert not finish(scene.data), "nothing says that it is wanted"
    assert Restoring(scene.data).found() == prepared
    scene.restoring.begin(99)
    assert Restoring(scene.data).found() is None
    scene.restoring.discard()
    assert names_in(scene.data) == {"state"}
    scene.restoring.discard()


def test_the_prepared_state_takes_the_place_of_the_state(scene: Scene) -> None:
    scene.prepare()
    scene.mark_ready()
    assert finish(scene.data)
    assert found_in(scene.data) == (scene.behind, THEN)
    assert names_in(scene.data) == {"state"}
    assert not finish(scene.data)


def test_a_state_that_was_put_in_place_isnt_verified_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.prepare()
    scene.mark_ready()
    monkeypatch.setattr(CheckpointStore, "_verify", lambda self: pytest.fail("it takes long"))
    assert finish(scene.data)
    assert found_in(scene.data) == (scene.behind, THEN)


@pytest.mark.slow
def test_each_step_may_be_the_last_of_a_life(tmp_path: Path) -> None:
    """Also each step of the next life, which goes on."""
    original = Scene(tmp_path / "original")
    original.prepare()
    count = 0
    while True:
        count += 1
        data = tmp_path / f"{count}"
        shutil.copytree(original.data, data)
        with pytest.MonkeyPatch.context() as patch:
            steps = stop_at(patch, count)
            with contextlib.suppress(Stop):
                Restoring(data).mark_ready(original.recovery_id, original.meta)
                finish(data)
        for again in range(1, 20):
            with pytest.MonkeyPatch.context() as patch:
                stop_at(patch, again)
                with contextlib.suppress(Stop):
                    finish(data)
        finish(data)
        found = found_in(data)
        if found[0] == original.before:
            assert found[1] == {b"key": b"3"}
            assert Restoring(data).found() is not None, "it does it all again"
        else:
            assert found == (original.behind, THEN)
            assert Restoring(data).found() is None
        assert not (data / "state.old").exists()
        shutil.rmtree(data)
        if steps() < count:
            break
    assert count > 12


def test_a_damaged_image_is_removed_and_the_state_stays(scene: Scene) -> None:
    scene.prepare()
    scene.mark_ready()
    image = scene.data / "restoring" / f"{scene.recovery_id:016x}" / "state" / "data.mdb"
    image.write_bytes(b"x" * 9000)
    assert not finish(scene.data)
    position, pairs = found_in(scene.data)
    assert (position, pairs) == (scene.before, {b"key": b"3"})
    assert names_in(scene.data) == {"state"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "meta": 5}'])
def test_a_ready_that_is_no_record_counts_for_nothing(scene: Scene, content: str) -> None:
    scene.prepare()
    scene.mark_ready()
    (scene.data / "restoring" / "READY").write_text(content)
    assert not finish(scene.data)
    assert found_in(scene.data)[0] == scene.before


def test_a_changed_meta_counts_for_nothing(scene: Scene) -> None:
    scene.prepare()
    scene.mark_ready()
    path = scene.data / "restoring" / "READY"
    content = json.loads(path.read_text())
    content["crc"] ^= 1
    path.write_text(json.dumps(content))
    assert not finish(scene.data)


def test_a_mark_that_is_no_record_is_no_prepared_state(scene: Scene) -> None:
    scene.prepare()
    path = scene.data / "restoring" / f"{scene.recovery_id:016x}" / restoring.PREPARED
    path.write_text("{}")
    assert scene.restoring.found() is None
