"""`FaultFs`: a file system that a test mounts and gives faults.

    with FaultFs(tmp_path / "disk") as disk:
        ...                                     # processes work in tmp_path / "disk"
        disk.set_faults(Fault(operation="sync", pattern="wal/*", code=errno.EIO, times=1))
        ...                                     # and are killed
        disk.lose_power(seed)

It needs root and /dev/fuse; `why_not` says what is missing. The server is a process of its own; its
end of the pipe tells it when this process is gone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.faultfs.faults import Fault

_ROOT = Path(__file__).parent.parent.parent
_END_TIMEOUT_S = 10.0
_CAP_SYS_ADMIN = 21


def why_not() -> str:
    """Why no file system can be mounted here; "" if one can."""
    if sys.platform != "linux":
        return "FUSE as used here is Linux's"
    if not _may_mount():
        return "only root, with CAP_SYS_ADMIN, can mount a FUSE file system without helpers"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse can't be opened: {error.strerror}"
    return ""


def _may_mount() -> bool:
    """True if the kernel lets this process mount; root in a container may lack the right."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (capabilities,) = re.findall(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return os.geteuid() == 0 and bool(int(capabilities, 16) >> _CAP_SYS_ADMIN & 1)


class FaultFs:
    """A file system of `tests.faultfs` at `folder`, which is made if missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faultfs", str(folder)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmount it; processes that still use it get errors from then on."""
        self._server.communicate(timeout=_END_TIMEOUT_S)

    def lose_power(self, seed: int, chance: float | None = None) -> None:
        """Forget what wasn't synced, or, by `seed`, parts of it. Its users must be dead.

        `chance`: of each sector and name to survive all the same; None for one that varies.
        """
        self._tell(do="lose_power", seed=seed, chance=chance)

    def set_faults(self, *faults: Fault) -> None:
        """Replace all faults by these; waiting operations go on."""
        self._tell(do="faults", faults=[fault.to_json() for fault in faults])

    def ignore_syncs(self, *, ignores: bool = True) -> None:
        """Make it lie: it reports syncs that it doesn't do."""
        self._tell(do="ignore_syncs", ignores=ignores)

    def set_capacity(self, count: int) -> None:
        """Limit the space to so many bytes in all."""
        self._tell(do="capacity", bytes=count)

    def count(self, operation: str, path: str) -> tuple[int, int]:
        """How often an operation was done, and how often it failed."""
        done, failed = self._tell(do="counts").get(f"{operation} {path}", (0, 0))
        return done, failed

    def counts(self) -> dict[str, tuple[int, int]]:
        """The same for all operations and paths, by "operation path"."""
        return {name: (done, failed) for name, (done, failed) in self._tell(do="counts").items()}

    def _tell(self, **command: Any) -> Any:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(command).encode() + b"\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the file system at {self.folder} ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the file system at {self.folder}: {answer['error']}")
        return answer["result"]
