"""What a node says of itself to others, and what it makes of their Hellos."""

from __future__ import annotations

import secrets

from raftha.config import HaConfig
from raftha.core import Raft
from raftha.net.introductions import OTHER_DISK
from raftha.net.wire import PROTOCOL_VERSION, Hello
from raftha.node import founding
from raftha.node.founding import Stance
from raftha.storage.directory.datadir import DataDirectory


def make_hello(config: HaConfig, data: DataDirectory) -> Hello:
    """The Hello of a node that starts."""
    return Hello(
        PROTOCOL_VERSION,
        data.cluster_id,
        config.node_id,
        0,
        data.incarnation,
        config.client_address,
        config.cluster_name,
        nonce=secrets.randbits(62),
    )


def stance_of(data: DataDirectory) -> Stance:
    """What a node with a cluster says of itself."""
    return Stance.HEALS if data.is_healing else Stance.MEMBER


def refusal(core: Raft, hello: Hello) -> str:
    """Why this node refuses a peer of its cluster; "" if it doesn't.

    A leader has every committed entry, so if it knows another data directory of a node, that one
    has taken the place of this one. Any other node may be behind.
    """
    is_whole = bool(hello.cluster_id) and hello.stance != Stance.HEALS
    if core.is_leader and is_whole and not core.membership.knows(hello.sender, hello.incarnation):
        return OTHER_DISK
    return ""


def must_heal(core: Raft, incarnation: int, hello: Hello) -> bool:
    """Whether this directory joined under a node that didn't know of an earlier directory yet.

    One that knew of it heals, or a leader has healed it.
    """
    is_unknown = core.membership.recorded(core.id) != incarnation
    is_other = founding.is_another(incarnation, hello.recorded)
    return is_other and is_unknown and not core.has_lost_log
