"""A reference server that dies at a step of a backup, for `test_backup_deaths`.

    python -m tests.integration.dying_server FOLDER/node-1/node.toml

does what `raftha serve` does, and looks at each step of a backup (docs/internals/backup.md, "How a
backup is taken") for an `Order` in FOLDER. The first process that reaches its step takes the order,
and kills the processes of its victims at once, its own last: the taker's, the leader's, or all.
SIGKILL can't be caught, so the node does nothing after the step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from raftha.node.backup.backups import Backups
from raftha.node.backup.taking import Taker
from raftha.node.backup_work import BackupOrder, TakenBackup
from raftha.runtime.backup_jobs import BackupJobs
from raftha.runtime.logs import log_to_stderr
from raftha.server import ServerConfig, run
from raftha.storage.backup.take import TakeHooks
from raftha.storage.state.catalog import Begin, End, Retire

TAKER, LEADER, ALL = "taker", "leader", "all"
BEGUN, POSITIONED, ENDED, RETIRED = 1, 2, 8, 9
"""The steps that are not `take`'s."""


class Order(NamedTuple):
    """Which processes die at which step; `pids` by node."""

    step: int
    victims: str
    pids: dict[str, int]

    def give(self, folder: Path) -> None:
        """Have the next process that reaches the step carry it out."""
        draft = folder / "draft"
        draft.write_text(json.dumps(self))
        draft.rename(folder / "order")

    @staticmethod
    def is_taken(folder: Path) -> bool:
        """Whether the last order that was given was carried out."""
        return not (folder / "order").exists()


class Deaths:
    """What this process does when it reaches a step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.backups: Backups | None = None
        """Those of the node of this process."""

    def reach(self, step: int) -> None:
        """Carry out the order, if it is for this step and no other process has taken it."""
        try:
            order = Order(*json.loads((self._folder / "order").read_text()))
            if order.step != step:
                return
            (self._folder / "order").rename(self._folder / f"taken-{os.getpid()}")
        except FileNotFoundError:
            return
        pids = [pid for node_id, pid in order.pids.items() if self._is_victim(order, int(node_id))]
        for pid in sorted(pids, key=lambda pid: pid == os.getpid()):
            os.kill(pid, signal.SIGKILL)

    def _is_victim(self, order: Order, node_id: int) -> bool:
        assert self.backups is not None
        core, catalog = self.backups._core, self.backups._state.catalog
        newest = max(catalog.records())
        takers = {(catalog.running or newest).node}
        dying = {TAKER: takers, LEADER: {core.leader or 0}, ALL: {node_id}}
        return node_id in dying[order.victims]


def plant(deaths: Deaths) -> None:
    """Have each step of a backup reported to `deaths`."""
    plain_init, plain_applied = Backups.__init__, Backups.on_applied
    plain_begin, plain_take = Taker._begin, BackupJobs.take

    @wraps(plain_init)
    def init(self: Backups, *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)
        deaths.backups = self

    def on_applied(self: Backups, index: int, *, is_new: bool) -> None:
        verdict = self._state.catalog.verdict
        if self._core.is_leader and not verdict.refusal:
            match verdict.change:
                case Begin():
                    deaths.reach(BEGUN)
                case End():
                    deaths.reach(ENDED)
                case Retire():
                    deaths.reach(RETIRED)
                case _:
                    pass
        plain_applied(self, index, is_new=is_new)

    def begin(self: Taker, task: Any) -> None:
        deaths.reach(POSITIONED)
        plain_begin(self, task)

    def take(self: BackupJobs, order: BackupOrder, hooks: TakeHooks) -> TakenBackup:
        def on_step(step: int, what: str) -> None:
            deaths.reach(step)
            hooks.on_step(step, what)

        return plain_take(self, order, replace(hooks, on_step=on_step))

    changes: dict[type, dict[str, Any]] = {
        Backups: {"__init__": init, "on_applied": on_applied},
        Taker: {"_begin": begin},
        BackupJobs: {"take": take},
    }
    for owner, methods in changes.items():
        for name, method in methods.items():
            setattr(owner, name, method)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    plant(Deaths(file.parents[1]))
    log_to_stderr("info", "text")
    run(ServerConfig.from_toml(file))
