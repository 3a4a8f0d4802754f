"""File descriptors: a server's clients must leave enough of them for its node.

Theory of operation. A node that can't open a file of its log has failed. So a server raises its
soft limit as far as its clients need it and the hard limit allows, and lowers `connections_max` if
that isn't enough.
"""

from __future__ import annotations

import logging
import resource

from raftha.errors import ConfigError

RESERVED = 256
"""Descriptors for everything but clients: the log, LMDB, peers, snapshots, the page of metrics."""

logger = logging.getLogger(__name__)


def fit_connections(connections_max: int) -> int:
    """Return how many clients there may be; ConfigError if there is no room for any.

    Raises the soft limit of the process's file descriptors, if it must and can.
    """
    wanted = connections_max + RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if raised > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft < 0 or soft >= wanted:
        return connections_max
    room = soft - RESERVED
    if room < 1:
        raise ConfigError(
            f"the limit of {soft} file descriptors leaves none for clients",
            hint=f"raise the hard limit to {wanted} (`ulimit -Hn`, LimitNOFILE= of systemd)",
        )
    logger.warning(
        "connections_max lowered from %d to %d: the hard limit of %d descriptors is below %d",
        connections_max,
        room,
        soft,
        wanted,
    )
    return room
