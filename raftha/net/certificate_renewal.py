"""Loads a node's certificate, key and CA again when these files change.

Theory of operation. The node checks the files once a minute. Changed files are validated as at a
start; from then on new connections use them, and existing connections continue. Files that can't be
used are logged, once a change, and the node keeps what it has. So the files may be replaced in any
order.
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
    """The TLS files of one node, and when they last changed."""

    def __init__(self, config: HaConfig) -> None:
        self._config = config
        self._stamps = self._stat_files()

    def load(self) -> PeerTls | None:
        """Read the files; None without TLS. ConfigError names what is wrong."""
        config = self._config
        if not config.tls_ca:
            return None
        ca, certificate, key = Path(config.tls_ca), Path(config.tls_cert), Path(config.tls_key)
        tls = PeerTls.load(config.cluster_name, ca, certificate, key)
        tls.check_own(config.node_id, certificate)
        return tls

    def renewed(self) -> PeerTls | None:
        """The contents of the files if they have changed since the last call and are valid."""
        stamps = self._stat_files()
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        try:
            return self.load()
        except ConfigError as error:
            node_id = self._config.node_id
            log.warning("tls node=%d the renewed files are not used: %s", node_id, error)
            return None

    def _stat_files(self) -> list[tuple[int, int, int]]:
        stamps = []
        for name in (self._config.tls_ca, self._config.tls_cert, self._config.tls_key):
            try:
                stat = Path(name).stat()
                stamps.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
            except OSError:
                stamps.append((0, 0, 0))  # `load` reports the reason.
        return stamps
