"""The numeric limits that several packages share.

A constant with a docstring below it is a limit of raftha, and docs/reference/limits.md lists it.
The others are units.
"""

from __future__ import annotations

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
DAY_MS = 86_400_000

MEMBERS_MAX = 9
"""Members of a cluster, voters and learners together."""

NODE_ID_MAX = (1 << 32) - 1
"""The largest id of a node. The smallest is 1."""

CLUSTER_NAME_BYTES_MAX = 64
"""The longest name of a cluster, in UTF-8."""

REGIONS_MAX = 16
"""Regions of a cluster."""

REGION_BYTES_MAX = 64
"""The longest name of a region, in UTF-8."""

KEY_BYTES_MAX = 511
"""The longest key. The shortest has 1 byte. LMDB sets this limit when it is compiled."""

VALUE_BYTES_MAX = 4 * MIB
"""The largest value that the format allows. A node's `value_bytes_max` may be less, never more."""

HOST_CHARACTERS_MAX = 255
"""The longest host name in an address."""

PORT_MAX = 65_535
"""The largest port in an address."""

TIMEOUT_S_MAX = 600
"""The longest time that a call may wait, in seconds, where a setting gives the time."""

BACKUP_DESTINATIONS_MAX = 4
"""Destinations of backups."""
