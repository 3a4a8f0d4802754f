"""Takes up the peers' certificate, key and CA that were renewed while the node runs.

Theory of operation. The files are looked at once a minute. If they have changed they are checked as
at a start, and from then on new connections use them; those that are there go on. What can't be
used is logged, once a change, and the node goes on with what it has: so it doesn't matter in which
order the files are replaced.
"""

from __future__ import annotations

import logging
from pathlib import Path

from raftha.config import HaConfig
from raftha.errors import ConfigError
from raftha.net.tls import PeerTls

CHECK_INTERVAL_S = 60.0

log = logging.getLogger(__name__)


class Renewal:
    """What one node knows of its files."""

    def __init__(self, config: HaConfig) -> None:
        self._config = config
        self._stamps = self._stat_files()

    def load(self) -> PeerTls | None:
        """Read the files, None if there are to be none; ConfigError says what is wrong."""
        config = self._config
        if not config.tls_ca:
            return None
        ca, certificate, key = Path(config.tls_ca), Path(config.tls_cert), Path(config.tls_key)
        tls = PeerTls.load(config.cluster_name, ca, certificate, key)
        tls.check_own(config.node_id, certificate)
        return tls

    def renewed(self) -> PeerTls | None:
        """What the files hold, if they have changed since the last time and are good."""
        stamps = self._stat_files()
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        try:
            return self.load()
        except ConfigError as error:
            node_id = self._config.node_id
            log.warning("tls node=%d the renewed files are not taken up: %s", node_id, error)
            return None

    def _stat_files(self) -> list[tuple[int, int, int]]:
        stamps = []
        for name in (self._config.tls_ca, self._config.tls_cert, self._config.tls_key):
            try:
                stat = Path(name).stat()
                stamps.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
            except OSError:
                stamps.append((0, 0, 0))  # Reading it will say why.
        return stamps
