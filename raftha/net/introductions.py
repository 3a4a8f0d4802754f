"""What two nodes say of themselves at first, and why one refuses the other for it."""

from __future__ import annotations

from raftha.net.wire import PROTOCOL_VERSION, Hello
from raftha.node.founding import Stance

FORKED = "recover-quorum has forked the cluster's history"
OTHER_DISK = "the cluster knows another data directory of this node, which is in use now"
_STANCES = frozenset(Stance)


def difference(own: Hello, other: Hello) -> str:
    """Why `other` can't be of the same cluster as `own`; "" if it can."""
    if other.protocol_version != PROTOCOL_VERSION:
        return f"protocol version {other.protocol_version}, here it is {PROTOCOL_VERSION}"
    if other.cluster_name != own.cluster_name:
        return f"cluster {other.cluster_name!r}, here it is {own.cluster_name!r}"
    if other.cluster_id and own.cluster_id and other.cluster_id != own.cluster_id:
        return f"cluster {other.cluster_id}, here it is {own.cluster_id}: they were founded apart"
    if other.lineage and own.lineage and other.lineage != own.lineage:
        return f"lineage {other.lineage}, here it is {own.lineage}: {FORKED}"
    if other.stance not in _STANCES:
        return f"stance {other.stance} is unknown"
    return ""
