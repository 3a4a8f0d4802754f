"""Where the measurements were made: the machine, versions, and the present cost of a sync."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("raftha", "lmdb", "hiredis", "msgpack", "google-crc32c", "uvloop")


def machine(folder: Path) -> dict[str, Any]:
    """CPU, memory, kernel, and the file system that `folder` is on."""
    return {
        "cpus": os.cpu_count(),
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name"),
        "memory_mib": int(_first_value(Path("/proc/meminfo"), "MemTotal").split()[0]) // 1024,
        "kernel": platform.release(),
        "file_system": _file_system(folder),
        "load_before": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Python's and our own."""
    found = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def fdatasync_ms(folder: Path, times: int = 200) -> float:
    """The median time of an fdatasync of 4 KiB into blocks that were written before."""
    path = folder / "probe"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(handle, bytes(1 << 20), 0)
        os.fsync(handle)
        took = []
        for i in range(times):
            os.pwrite(handle, b"\1" * 4096, 4096 * (i % 256))
            started = time.perf_counter()
            os.fdatasync(handle)
            took.append(1000 * (time.perf_counter() - started))
        return statistics.median(took)
    finally:
        os.close(handle)
        path.unlink()


def rss_anon_bytes(pid: int) -> int:
    """A process's own memory, without files and LMDB's page cache."""
    return int(_first_value(Path(f"/proc/{pid}/status"), "RssAnon").split()[0]) * 1024


def cpu_s(pid: int) -> float:
    """CPU time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def program_version(*command: str) -> str:
    """The first line of a program's version output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0]


def _first_value(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return "0"


def _file_system(folder: Path) -> str:
    """Type and device of the mount that holds it."""
    best = ("", "")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, target, kind = line.split()[:3]
        if folder.resolve().is_relative_to(target) and len(target) >= len(best[0]):
            best = (target, f"{kind} on {device}")
    return best[1]
