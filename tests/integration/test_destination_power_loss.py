"""A folder of backups loses power in the middle of writing: what was acknowledged is whole.

Writers are processes that are killed on a file system of `tests.faultfs`, which then forgets
unsynced bytes and names (none, all, or a torn part, by the seed).
"""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from raftha.errors import RepositoryUnavailable
from raftha.storage.backup.destination import create_or_compare
from raftha.storage.backup.local import LocalDestination
from tests.faultfs.faults import Fault
from tests.faultfs.mount import FaultFs, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"no FUSE: {why_not()}"),
]

ROOT = Path(__file__).parents[2]
LOSSES = 6
WRITER = """
import sys
from hashlib import sha256
from pathlib import Path
from raftha.storage.backup.destination import create_or_compare
from raftha.storage.backup.local import LocalDestination

destination = LocalDestination("local", Path(sys.argv[1]))
for number in range(1_000_000):
    name = f"{sys.argv[2]}/{number % 3}/{number:06}"
    create_or_compare(destination, name, sha256(name.encode()).digest() * 100)
    print(name, flush=True)
    if number % 7 == 6:
        destination.delete(name)
        print("-" + name, flush=True)
"""


def content_of(name: str) -> bytes:
    return sha256(name.encode()).digest() * 100


def write_until_killed(folder: Path, prefix: str, seconds: float) -> list[str]:
    """Run a writer for a while; return what it said: names created, and `-name` if deleted."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), prefix],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    said = [writer.stdout.readline()]
    time.sleep(seconds)
    writer.kill()
    said += writer.stdout.readlines()
    writer.wait()
    writer.stdout.close()
    return [line.rstrip("\n") for line in said if line.endswith("\n")]


def test_what_was_acknowledged_is_whole_after_each_loss_of_power(tmp_path: Path) -> None:
    acknowledged: dict[str, bool] = {}
    with FaultFs(tmp_path / "disk") as disk:
        folder = disk.folder / "node" / "backups"
        for seed in range(LOSSES):
            for line in write_until_killed(folder, f"w{seed}", 0.02 * seed):
                acknowledged[line.removeprefix("-")] = not line.startswith("-")
            disk.lose_power(seed)
            destination = LocalDestination("local", folder)
            listed = {each.name for each in destination.list("")}
            # Whatever is there is whole, also what was under way.
            for name in listed:
                assert bytes(destination.get(name, size_max=5000)) == content_of(name)
            deleting = f"w{seed}/"
            for name, is_there in acknowledged.items():
                if is_there and name not in listed:
                    # Its deletion may have been under way; the next object was not begun then.
                    assert name.startswith(deleting)
                    assert int(name[-6:]) % 7 == 6
                elif not is_there:
                    assert name not in listed
            for name in listed:  # A taker that starts again repeats its puts.
                create_or_compare(destination, name, content_of(name))
            acknowledged = {name: name in listed for name in acknowledged}
    assert sum(acknowledged.values()) > LOSSES, "too few objects to prove anything"


def test_objects_are_lost_where_a_disk_lies_about_syncs(tmp_path: Path) -> None:
    """The test above can fail."""
    with FaultFs(tmp_path / "disk") as disk:
        destination = LocalDestination("local", disk.folder / "backups")
        disk.ignore_syncs()
        destination.create("a/object", b"content")
        disk.lose_power(1, 0.0)
        assert destination.list("") == []


@pytest.mark.parametrize("operation", ["sync", "sync_dir", "write"])
def test_an_object_whose_write_failed_is_no_success_and_can_be_repeated(
    tmp_path: Path, operation: str
) -> None:
    with FaultFs(tmp_path / "disk") as disk:
        destination = LocalDestination("local", disk.folder / "backups")
        destination.create("a/first", b"first")
        disk.set_faults(Fault(operation=operation, pattern="*", code=errno.EIO, times=1))
        with pytest.raises(RepositoryUnavailable):
            create_or_compare(destination, "a/object", b"content")
        create_or_compare(destination, "a/object", b"content")
        disk.lose_power(1, 0.0)
        assert destination.get("a/object", size_max=10) == b"content"
        assert destination.get("a/first", size_max=10) == b"first"


def test_a_deleted_object_stays_deleted(tmp_path: Path) -> None:
    with FaultFs(tmp_path / "disk") as disk:
        destination = LocalDestination("local", disk.folder / "backups")
        for name in ("a/b/one", "a/b/two", "a/c/three"):
            destination.create(name, b"content")
        destination.delete("a/b/one")
        destination.delete("a/c/three")
        disk.lose_power(1, 0.0)
        assert [each.name for each in destination.list("")] == ["a/b/two"]
