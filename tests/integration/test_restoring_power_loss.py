"""The power fails while a recovery puts its state in place: the node has the old one or the new.

The steps are done by processes that end at one of them, on a file system of `tests.faultfs`, which
then forgets unsynced bytes and names (none, all, or a torn part, by the seed).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raftha.storage.directory.restoring import Restoring, finish
from tests.faultfs.mount import FaultFs, why_not
from tests.unit.test_restoring import THEN, Scene, found_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"no FUSE: {why_not()}"),
]

ROOT = Path(__file__).parents[2]
STEPS = range(1, 11)
"""Syncs of files and folders, renames and removals; the last may be one more than there are."""
PROCESS = """
import os, shutil, sys
from pathlib import Path
from raftha.storage.directory import restoring
from raftha.storage.directory.restoring import Restoring, finish
from raftha.storage.state.checkpoint import CheckpointStore

data, recovery_id, meta = Path(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
left = int(sys.argv[4])

def counted(original):
    def call(*args, **keywords):
        global left
        result = original(*args, **keywords)
        left -= 1
        if left == 0:
            os._exit(9)
        return result
    return call

restoring.sync_folder = counted(restoring.sync_folder)
restoring.replace_file = counted(restoring.replace_file)
CheckpointStore.write = counted(CheckpointStore.write)
Path.rename, Path.unlink = counted(Path.rename), counted(Path.unlink)
shutil.rmtree = counted(shutil.rmtree)
Restoring(data).mark_ready(recovery_id, meta)
finish(data)
"""


def end_after(scene: Scene, step: int) -> int:
    command = [sys.executable, "-c", PROCESS, str(scene.data), str(scene.recovery_id)]
    command += [scene.meta.hex(), str(step)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def test_a_node_has_one_state_or_the_other_after_each_loss_of_power(tmp_path: Path) -> None:
    ended = set()
    with FaultFs(tmp_path / "disk") as disk:
        for step in STEPS:
            scene = Scene(disk.folder / f"{step}")
            scene.prepare()
            ended.add(end_after(scene, step))
            disk.lose_power(step)
            was_ready = finish(scene.data)
            disk.lose_power(100 + step)
            found = found_in(scene.data)
            if found[0] == scene.before:
                assert step == 1, "READY is durable from its rename on"
                assert found[1] == {b"key": b"3"}
                assert Restoring(scene.data).found() is not None
            else:
                assert found == (scene.behind, THEN)
                assert was_ready or step > 3
    assert 9 in ended


def test_what_is_prepared_is_durable_once_it_is_found(tmp_path: Path) -> None:
    with FaultFs(tmp_path / "disk") as disk:
        scene = Scene(disk.folder / "1")
        scene.prepare()
        disk.lose_power(1, 0.0)
        assert Restoring(scene.data).found() is not None
        scene.mark_ready()
        disk.lose_power(2, 0.0)
        assert finish(scene.data)
        disk.lose_power(3, 0.0)
        assert found_in(scene.data) == (scene.behind, THEN)
