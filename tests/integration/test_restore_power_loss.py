"""The power fails during a restore: there is no directory afterwards, or the whole one.

Restores are processes that are killed on a file system of `tests.faultfs`, which then forgets
unsynced bytes and names (none, all, or a torn part, by the seed).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from raftha.config import HaConfig
from raftha.runtime.quorum_recovery import open_stopped
from raftha.storage.backup.local import LocalDestination
from raftha.storage.backup.recovery import Target
from tests.faultfs.mount import FaultFs, why_not
from tests.support.backups import BackedUpNode, repository_of
from tests.support.recovery_history import History

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"no FUSE: {why_not()}"),
]

ROOT = Path(__file__).parents[2]
STEPS = (4, 5)
RESTORE = """
import os
import sys
from pathlib import Path
from raftha.membership import Member
from raftha.storage.backup.local import LocalDestination
from raftha.storage.backup.replay import ReplayHooks
from raftha.storage.backup.restore import run_restore
from raftha.storage.backup.restore_plan import RestoreTarget, plan_restore
from tests.support.backups import LINEAGE, repository_of

folder, data_dir, label, last = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
repository = repository_of(LocalDestination("local", folder))
target = RestoreTarget(
    data_dir=data_dir, cluster_name="raftha", node_id=1, own=Member("127.0.0.1:7001"),
    segment_bytes=16 << 20,
)

def on_step(step):
    if step == last:
        os._exit(9)

plan = plan_restore(repository, LINEAGE, label, target)
run_restore(plan, repository, ReplayHooks(on_step=on_step))
"""


def restore(folder: Path, data_dir: Path, label: str, last_step: int) -> int:
    """Restore in a process of its own, which ends after this step."""
    command = [sys.executable, "-c", RESTORE, str(folder), str(data_dir), label, str(last_step)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def pairs_in(data_dir: Path) -> dict[bytes, bytes | None]:
    config = HaConfig(node_id=1, data_dir=data_dir, members={1: "127.0.0.1:7001"})
    with open_stopped(config) as stopped:
        return dict(stopped.state.iterate(None, None, reverse=False))


def test_a_directory_is_whole_or_not_there_after_each_loss_of_power(tmp_path: Path) -> None:
    node = BackedUpNode()
    node.write({b"%04d" % i: b"%d" % i * 20 for i in range(2000)})
    folder = tmp_path / "backups"
    label = node.take(repository_of(LocalDestination("local", folder))).manifest.label
    with FaultFs(tmp_path / "disk") as disk:
        for seed, step in enumerate(STEPS):
            data_dir = disk.folder / f"node-{step}"
            assert restore(folder, data_dir, label, step) == 9
            disk.lose_power(seed)
            assert data_dir.exists() is (step == STEPS[-1])
            if not data_dir.exists():
                assert restore(folder, data_dir, label, 0) == 0
                disk.lose_power(100 + seed)
            assert pairs_in(data_dir) == node.model


MOMENT = """
import os
import sys
from pathlib import Path
from raftha.membership import Member
from raftha.storage.backup.local import LocalDestination
from raftha.storage.backup.planner import plan_recovery
from raftha.storage.backup.recovery import Target
from raftha.storage.backup.replay import ReplayHooks
from raftha.storage.backup.restore import run_restore
from raftha.storage.backup.restore_plan import RestoreTarget, plan_recovered
from tests.support.backups import repository_of
from tests.support.state_bench import Kit

folder, data_dir, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
repository = repository_of(LocalDestination("local", folder))
target = RestoreTarget(
    data_dir=data_dir, cluster_name="raftha", node_id=1, own=Member("127.0.0.1:7001"),
    segment_bytes=16 << 20,
)

def on_step(step):
    if step == last:
        os._exit(9)

plan = plan_recovered(repository, plan_recovery(repository, Target()), target)
run_restore(plan, repository, ReplayHooks(on_step=on_step, buffer_bytes=1000), Kit())
"""


def test_a_replay_over_recoveries_is_whole_or_not_there(tmp_path: Path) -> None:
    """Sources are states of their own, which are copied and renamed: all of that is synced too."""
    folder = tmp_path / "backups"
    history = History(Random(4), destination=LocalDestination("local", folder))
    history.backup()
    sequence = history.last.last_sequence
    for _ in range(2):
        for _ in range(10):
            history.write(5)
        history.go_back(Target(sequence=sequence))  # Twice the same source: a copy, and a rename.
    for _ in range(10):
        history.write(5)
    history.archive(3)

    def restore_moment(data_dir: Path, last_step: int) -> int:
        command = [sys.executable, "-c", MOMENT, str(folder), str(data_dir), str(last_step)]
        return subprocess.run(command, cwd=ROOT, check=False).returncode

    with FaultFs(tmp_path / "disk") as disk:
        for seed, step in enumerate(STEPS):
            data_dir = disk.folder / f"node-{step}"
            assert restore_moment(data_dir, step) == 9
            disk.lose_power(seed)
            assert data_dir.exists() is (step == STEPS[-1])
            if not data_dir.exists():
                assert restore_moment(data_dir, 0) == 0
                disk.lose_power(100 + seed)
            assert pairs_in(data_dir) == history.model
