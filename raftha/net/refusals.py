"""Counts and logs refused connections, without letting strangers fill the log.

Theory of operation. A refused peer tries again, for ever. So each reason is logged once for each
host, and again after an hour if it continues. The table of reasons is bounded. Once a stranger has
filled it with new ones, only the 1st, 2nd, 4th, 8th ... refusal of all is logged.
"""

from __future__ import annotations

import logging
import time

LOG_AGAIN_S = 3600.0
LOGGED_MAX = 256
REASON_CHARACTERS_MAX = 300


class Refusals:
    """The refusals of one listener."""

    def __init__(self, logger: logging.Logger, what: str) -> None:
        """`what` begins each line: what is refused, and by which node."""
        self.total = 0
        self._logger = logger
        self._what = what
        self._logged_at: dict[tuple[str, str], float] = {}

    def add(self, remote: str, reason: str) -> None:
        """Count a refusal, and log it if it is news. `remote` is an address with a port."""
        self.total += 1
        reason = "".join(c if c.isprintable() else "?" for c in reason[:REASON_CHARACTERS_MAX])
        if self._is_news((_host_of(remote), reason)):
            self._logger.warning(
                "%s from=%s total=%d reason=%s", self._what, remote, self.total, reason
            )

    def _is_news(self, kind: tuple[str, str]) -> bool:
        now = time.monotonic()
        logged_at = self._logged_at.get(kind)
        if logged_at is not None and now - logged_at < LOG_AGAIN_S:
            return False
        if logged_at is None and len(self._logged_at) >= LOGGED_MAX:
            recent = {k: at for k, at in self._logged_at.items() if now - at < LOG_AGAIN_S}
            self._logged_at = recent
            if len(recent) >= LOGGED_MAX:
                return self.total.bit_count() == 1
        self._logged_at[kind] = now
        return True


def _host_of(remote: str) -> str:
    """The host in `remote`, without the port, which differs at each try; may be a tuple's repr."""
    return remote.split(",", maxsplit=1)[0] if remote.startswith("(") else remote.rpartition(":")[0]
