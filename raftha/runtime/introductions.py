"""What a node says of itself to others, and what it makes of their Hellos."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from raftha.config import HaConfig
from raftha.core import Raft
from raftha.events import HaEvent, MemberCloned, ReplicaUnsupported
from raftha.net.introductions import OTHER_DISK
from raftha.net.wire import Hello
from raftha.node import founding
from raftha.node.founding import Stance
from raftha.node.node import Node
from raftha.runtime.founding import Waiting
from raftha.storage.directory import skips
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.state.state import State

REPORT_AGAIN_S = 3600.0
CLONED_FOR_S = 60.0
"""How long the status names a member of which a second process was refused. It dials all the time,
so the status forgets it soon after it has ended."""


def make_hello(config: HaConfig, data: DataDirectory, state: State) -> Hello:
    """The Hello of a node that starts."""
    abilities = state.abilities
    return Hello(
        abilities.protocol,
        data.cluster_id,
        config.node_id,
        0,
        data.incarnation,
        config.client_address,
        abilities.protocol_oldest,
        skips.fingerprint(state.skips),
        config.cluster_name,
        nonce=secrets.randbits(62),
    )


def said_of(data: DataDirectory, waiting: Waiting | None) -> dict[str, Any]:
    """What a node says of itself, now that its directory is like this: fields of its Hello."""
    stance = Stance.HEALS if data.is_healing else Stance.MEMBER
    return {
        "cluster_id": data.cluster_id,
        "incarnation": data.incarnation,
        "stance": waiting.stance if waiting is not None else stance,
    }


def unsupported(state: State, hello: Hello) -> str:
    """Why a peer can't take part with its build, or with what it skips; "" if it can."""
    used = state.versions
    if hello.skips != skips.fingerprint(state.skips):
        return "the two skip different entries: run `raftha skip-entry` alike on all nodes"
    if used is None or hello.protocol_version >= used.protocol:
        return ""
    return (
        f"the cluster uses protocol {used.protocol}, and node {hello.sender} supports "
        f"{hello.protocol_oldest} to {hello.protocol_version}: upgrade it"
    )


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


class Notices:
    """Events about refused peers, which dial again and again, so that each is news."""

    def __init__(self, node_id: int, emit: Callable[[HaEvent], None]) -> None:
        self._id = node_id
        self._emit = emit
        self._unsupported: dict[int, str] = {}
        self._cloned_at: dict[int, float] = {}
        self._clone_dialled_at: dict[int, float] = {}

    def refusal(self, node: Node, hello: Hello) -> str:
        """Why this node refuses a peer of its cluster; "" if it doesn't."""
        reason = unsupported(node.state, hello)
        if reason:
            self.unsupported(hello.sender, reason)
        return reason or refusal(node.core, hello)

    def supported(self, peer: int) -> None:
        """This peer takes part."""
        self._unsupported.pop(peer, None)

    def unsupported(self, peer: int, reason: str) -> None:
        """This peer can't take part, for `reason`."""
        if self._unsupported.get(peer) != reason:
            self._unsupported[peer] = reason
            self._emit(ReplicaUnsupported(reporter=self._id, node_id=peer, reason=reason))

    def cloned(self, peer: int, remote: str) -> None:
        """A second process of this connected peer was refused, at `remote`."""
        now = time.monotonic()
        self._clone_dialled_at[peer] = now
        if now - self._cloned_at.get(peer, float("-inf")) >= REPORT_AGAIN_S:
            self._cloned_at[peer] = now
            self._emit(MemberCloned(reporter=self._id, node_id=peer, remote=remote))

    def cloned_members(self) -> tuple[int, ...]:
        """The members of which a second process was refused in the last `CLONED_FOR_S`."""
        since = time.monotonic() - CLONED_FOR_S
        return tuple(sorted(peer for peer, at in self._clone_dialled_at.items() if at >= since))
