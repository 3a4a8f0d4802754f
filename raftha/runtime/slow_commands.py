"""Says which command of the user's doesn't return: the node's own thread can't, since it waits.

Theory of operation. A command that loops for ever, or waits for a lock or a socket, stops its node:
no election, no status, no stop. In the log it stops every node, and again at each start. Nothing
can end it, but an operator can have the nodes skip its entry (`raftha skip-entry`), and has to know
which one. So a thread looks at the node's state now and then, and logs an entry, or a trial, that
it finds again and again. A command that never releases the GIL stops this thread too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from raftha.storage.state.state import State

CHECK_S = 5.0
SEEN_MAX = 3
"""Looks that find the same command: more than one, since a process may have been paused."""

log = logging.getLogger(__name__)


class SlowCommands:
    """Watches one life of a node, from `start` until `stop`."""

    def __init__(self, node_id: int, state: State, has_failed: Callable[[], bool]) -> None:
        """`has_failed`: the entry that a failed node was applying stays there."""
        self._id = node_id
        self._state = state
        self._has_failed = has_failed
        self._last: object = None
        self._seen = 0
        self._ended = threading.Event()
        name = f"raftha-{node_id}-commands"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def look(self) -> None:
        """Log the command under way if it is still the one of the looks before."""
        entry, trial = self._state.applying, self._state.trying
        current: object = trial if trial is not None else entry
        if current is None or self._has_failed() or current is not self._last:
            self._last, self._seen = current, 0
            return
        self._seen += 1
        if self._seen != SEEN_MAX:
            return
        for_s = round(SEEN_MAX * CHECK_S)
        if trial is not None:
            log.critical(
                "node=%d a trial of command=%r has not returned for %d s", self._id, trial[1], for_s
            )
        elif entry is not None:
            log.critical(
                "node=%d a command of entry=%d hash=%s has not returned for %d s; if it never "
                "does, `raftha skip-entry` on all nodes passes it over",
                self._id,
                entry.index,
                entry.hash.hex(),
                for_s,
            )

    def _run(self) -> None:
        while not self._ended.wait(CHECK_S):
            self.look()
