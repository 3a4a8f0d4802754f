"""Drills in a process of their own, at the lowest priority: `python -m raftha.runtime.drill`.

Theory of operation. A drill restores a state and replays log, which takes processors, memory and
disk for minutes. So a node has another process do it, which the system runs when there is nothing
else to do, and which can be killed at any time. It gets one JSON object on its standard input, and
prints a report as one on its standard output.

The user's state machine is made there once more: its class is imported by its module's name, or, if
the program itself defines it, from the program's file, as `multiprocessing` does. It must not need
arguments.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raftha.config.backup import BackupConfig
from raftha.errors import ConfigError, RafthaError
from raftha.recovery import DrillReport
from raftha.runtime.machines import load_machine
from raftha.storage.backup.drill import (
    DrillOrder,
    decode_report,
    encode_report,
    run_drill,
    write_report,
)
from raftha.storage.backup.opening import open_configured
from raftha.storage.backup.pool import thread_pool
from raftha.storage.backup.recovery import Target
from raftha.storage.backup.replay import ReplayHooks
from raftha.storage.state.machine import StateMachine

NICE = 19
POLL_S = 0.2
OUTPUT_CHARS = 500
PROGRAM = "__raftha_drill__"
"""The name under which the user's program is imported."""


def run_in_process(
    order: DrillOrder,
    config: BackupConfig,
    folder: Path,
    machine: StateMachine | None,
    skips: Mapping[int, bytes],
    is_wanted: Callable[[], bool] = lambda: True,
) -> DrillReport:
    """Have a drill done by another process, in a folder that is made and removed; blocks.

    All errors are in the report, also that the process has ended, or is no longer wanted.
    """
    failed = DrillReport(
        is_ok=False,
        started_us=order.started_us,
        node_id=order.node_id,
        lineage=order.lineage,
        target=str(order.target or ""),
    )
    shutil.rmtree(folder, ignore_errors=True)
    errors = ""
    try:
        folder.mkdir(mode=0o700)
        asked = json.dumps(_asked(order, config, folder, machine, skips))
        output, errors = _run(asked, is_wanted)
        return decode_report(output.encode())
    except RafthaError as error:
        return _with_error(failed, str(error))
    except OSError as error:
        return _with_error(failed, f"{error.filename or folder}: {error.strerror}")
    except ValueError:
        return _with_error(failed, f"the drill's process failed: {errors[-OUTPUT_CHARS:].strip()}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_error(report: DrillReport, error: str) -> DrillReport:
    return replace(report, error=error)


def _run(asked: str, is_wanted: Callable[[], bool]) -> tuple[str, str]:
    """Run the process, and return what it prints; ends it once it isn't wanted any more."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-m", "raftha.runtime.drill"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    given: str | None = asked
    with process:
        while True:
            try:
                return process.communicate(given, timeout=POLL_S)
            except subprocess.TimeoutExpired:
                given = None
                if not is_wanted():
                    process.kill()
                    process.communicate()
                    raise RafthaError("the drill was ended") from None


def _asked(
    order: DrillOrder,
    config: BackupConfig,
    folder: Path,
    machine: StateMachine | None,
    skips: Mapping[int, bytes],
) -> dict[str, Any]:
    return {
        "order": [*order[:2], order.target and order.target.as_dict(), *order[3:]],
        "destinations": dict(config.destinations),
        "encryption": config.encryption,
        "encryption_key_file": str(config.encryption_key_file),
        "encryption_key_command": config.encryption_key_command,
        "folder": str(folder.absolute()),
        "machine": None if machine is None else _named(type(machine)),
        "skips": {str(index): digest.hex() for index, digest in skips.items()},
    }


def _named(kind: type) -> list[str]:
    """How another process finds a class: its module, its name, and the program's file or ""."""
    if "<locals>" in kind.__qualname__:
        raise ConfigError(
            f"a drill can't make the state machine {kind.__qualname__}, a class in a function",
            hint="define it at the top of its module",
        )
    if kind.__module__ != "__main__":
        return [kind.__module__, kind.__qualname__, ""]
    program = sys.modules["__main__"]
    if program.__spec__ is not None:
        return [program.__spec__.name, kind.__qualname__, ""]
    file = getattr(program, "__file__", None)
    if file is None:
        raise ConfigError(
            "a drill can't make a state machine that was typed in",
            hint="define it in a module",
        )
    return [PROGRAM, kind.__qualname__, str(Path(file).absolute())]


def _machine_of(found: list[str] | None) -> StateMachine | None:
    if found is None:
        return None
    module_name, class_name, file = found
    if file:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{file} can't be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return load_machine(f"{module_name}:{class_name}")


def main() -> None:
    """Do one drill; see the module's docstring."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    asked = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr  # The user's module may print.
    started_us, lineage, target, seed, node_id = asked["order"]
    wanted = None if target is None else Target(**target)
    order = DrillOrder(started_us, lineage, wanted, seed, node_id)
    try:
        report = _do(order, asked)
    except RafthaError as error:
        report = _with_error(
            DrillReport(is_ok=False, started_us=started_us, node_id=node_id, lineage=lineage),
            str(error),
        )
    print(encode_report(report).decode(), file=output, flush=True)


def _do(order: DrillOrder, asked: Mapping[str, Any]) -> DrillReport:
    config = BackupConfig(
        destinations=asked["destinations"],
        encryption=asked["encryption"],
        encryption_key_file=asked["encryption_key_file"],
        encryption_key_command=asked["encryption_key_command"],
    )
    machine = _machine_of(asked["machine"])
    skips = {int(index): bytes.fromhex(digest) for index, digest in asked["skips"].items()}
    hooks = ReplayHooks(pool=thread_pool, skips=skips)
    with contextlib.closing(
        open_configured(config, may_create=False, now_us=time.time_ns() // 1000)
    ) as repository:
        report = run_drill(repository, order, Path(asked["folder"]), machine, hooks)
        if report.lineage:
            write_report(repository, report)
        return report


if __name__ == "__main__":
    main()
