"""What two nodes say of themselves at first, and why one refuses the other for it."""

from __future__ import annotations

from raftha.net.wire import Hello
from raftha.node.founding import Stance

FORKED = "recover-quorum has forked the cluster's history"
OTHER_DISK = "the cluster knows another data directory of this node, which is in use now"
_STANCES = frozenset(Stance)


def difference(own: Hello, other: Hello) -> str:
    """Why `other` can't be of the same cluster as `own`; "" if it can."""
    if other.cluster_name != own.cluster_name:
        return f"cluster {other.cluster_name!r}, here it is {own.cluster_name!r}"
    if other.cluster_id and own.cluster_id and other.cluster_id != own.cluster_id:
        return f"cluster {other.cluster_id}, here it is {own.cluster_id}: they were founded apart"
    if other.lineage and own.lineage and other.lineage != own.lineage:
        return f"lineage {other.lineage}, here it is {own.lineage}: {FORKED}"
    if other.stance not in _STANCES:
        return f"stance {other.stance} is unknown"
    return ""


def no_common_protocol(own: Hello, other: Hello) -> str:
    """Why the two share no protocol, and which of them to upgrade; "" if they share one."""
    is_older = other.protocol_version < own.protocol_oldest
    if not is_older and other.protocol_oldest <= own.protocol_version:
        return ""
    oldest = other.protocol_oldest or other.protocol_version if is_older else other.protocol_oldest
    return (
        f"node {other.sender} speaks protocol {oldest} to {other.protocol_version}, node "
        f"{own.sender} {own.protocol_oldest} to {own.protocol_version}: upgrade node "
        f"{other.sender if is_older else own.sender}"
    )
