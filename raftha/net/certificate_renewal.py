"""Loads a node's certificate, key, CA and revocations again when these files change.

Theory of operation. The node checks the files once a minute. Changed files are validated as at a
start; from then on new connections use them, and existing connections continue. Files that can't be
used are logged, once a change, and the node keeps what it has. So the files may be replaced in any
order. Connections of certificates that are revoked by now are closed.

A certificate that expires soon is reported 30, 7 and 1 days before, when it has expired, and at
each start after the first of these moments.
"""

from __future__ import annotations

import logging
from pathlib import Path

from raftha.config import HaConfig
from raftha.errors import ConfigError
from raftha.events import CertificateExpires
from raftha.net.tls import PeerTls

CHECK_INTERVAL_S = 60.0
DAY_S = 86_400
WARNED_AT_DAYS = (30, 7, 1, 0)
"""How many days before a certificate expires that is reported."""

log = logging.getLogger(__name__)


class Renewal:
    """The TLS files of one node, and when they last changed."""

    def __init__(self, config: HaConfig) -> None:
        self._config = config
        self._stamps = self._stat_files()
        self.expires_at = 0.0
        """When this node's certificate expires, in seconds since 1970 UTC; 0 without one."""
        self._warned_at_days: int | None = None

    def load(self) -> PeerTls | None:
        """Read the files; None without TLS. ConfigError names what is wrong."""
        config = self._config
        if not config.tls_ca:
            return None
        ca, certificate, key = Path(config.tls_ca), Path(config.tls_cert), Path(config.tls_key)
        revoked = Path(config.tls_revoked) if config.tls_revoked else None
        tls = PeerTls.load(config.cluster_name, ca, certificate, key, revoked)
        self.expires_at = tls.check_own(config.node_id, certificate)
        self._warned_at_days = None
        return tls

    def expiry(self, now: float) -> CertificateExpires | None:
        """Return what must be reported now, in seconds since 1970 UTC, each time once."""
        left_days = (self.expires_at - now) / DAY_S
        due = [days for days in WARNED_AT_DAYS if left_days <= days]
        if not self.expires_at or not due or due[-1] == self._warned_at_days:
            return None
        self._warned_at_days = due[-1]
        return CertificateExpires(
            reporter=self._config.node_id,
            path=str(self._config.tls_cert),
            days_left=max(int(left_days), 0),
        )

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
        config = self._config
        for name in (config.tls_ca, config.tls_cert, config.tls_key, config.tls_revoked):
            try:
                stat = Path(name).stat()
                stamps.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
            except OSError:
                stamps.append((0, 0, 0))  # `load` reports the reason.
        return stamps
