"""A node without a cluster, on the real disk: it founds one, or joins one, and begins again.

Theory of operation. `Waiting` carries out what `raftha.node.founding` decides. While it exists, the
node takes no messages: it has no log, so it has nothing to say. Founding and joining change the
disk, so the node ends and is opened again, with its callers' operations, as a member.

The founder writes the first entry to its log before it records the cluster in its identity. A start
between the two finds the entry, and records the cluster then.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from raftha.config import HaConfig
from raftha.core import Append, Heartbeat, SnapshotOffer
from raftha.entry import LOG_START, EntryKind, HardState, make_entry
from raftha.errors import ConfigError
from raftha.membership import Member, Membership
from raftha.net.wire import Hello
from raftha.node import founding
from raftha.node.bootstrap import configured_members
from raftha.node.founding import FOUNDING_TERM, Founding, Stance, first_membership
from raftha.node.messages import PeerMessage
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.wal import Wal

SETTLE_S, REMIND_S = 1.0, 10.0
"""How long a node waits in silence at first, and how often it says the same again."""

log = logging.getLogger(__name__)


def new_id() -> str:
    """A random id for a cluster or a lineage: 32 hex digits."""
    return secrets.token_hex(16)


def found(data: DataDirectory, membership: Membership, segment_bytes: int) -> None:
    """Make this directory that of a founder: `membership` is the first entry of its log."""
    wal = Wal.open(
        RealDisk(),
        str(data.path / "wal"),
        segment_bytes=segment_bytes,
        salt=lambda: secrets.randbits(64),
    )
    try:
        if wal.last == LOG_START:
            payload = membership.encode()
            entry = make_entry(LOG_START, FOUNDING_TERM, 0, EntryKind.MEMBERSHIP, payload, 0)
            wal.append(HardState(FOUNDING_TERM, data.node_id, entry.index), (entry,))
    finally:
        wal.close()
    data.join(membership.cluster_id, heals=False)


def found_together(
    directories: Mapping[int, Path],
    members: Mapping[int, Member],
    cluster_name: str,
    segment_bytes: int,
) -> None:
    """Found a cluster in the new, empty directories of all its members, which don't run yet."""
    data = {i: DataDirectory(path, cluster_name, i) for i, path in directories.items()}
    try:
        voters = {i: directory.incarnation for i, directory in data.items()}
        membership = first_membership(members, voters, new_id(), new_id())
        for directory in data.values():
            found(directory, membership, segment_bytes)
    finally:
        for directory in data.values():
            directory.close()


def order_founding(config: HaConfig) -> None:
    """Have this node, which doesn't run, found a cluster at its next start.

    ConfigError if its data directory belongs to a cluster already, or is in use.
    """
    if config.node_id not in config.members:
        raise ConfigError(f"node {config.node_id} is not in members, so it can't found the cluster")
    data = DataDirectory(Path(config.data_dir), config.cluster_name, config.node_id)
    try:
        if data.cluster_id:
            raise ConfigError(
                f"data_dir {data.path} belongs to a cluster already",
                hint="a cluster is founded once; just start the node",
            )
        data.order_founding()
    finally:
        data.close()


def _stance(config: HaConfig, data: DataDirectory) -> Stance:
    if data.is_founding:
        return Stance.FOUNDS
    is_alone = tuple(config.members) == (config.node_id,)
    return Stance.BOOTSTRAPS if config.bootstrap or is_alone else Stance.WAITS


class Waiting:
    """The time of a node without a cluster; for the node's thread."""

    def __init__(
        self,
        config: HaConfig,
        data: DataDirectory,
        now: Callable[[], float],
        begin_again: Callable[[Callable[[], None]], None],
    ) -> None:
        """`begin_again` ends the node, calls a function, and opens the node."""
        self.stance = _stance(config, data)
        self._config = config
        self._data = data
        self._now = now
        self._begin_again = begin_again
        members = configured_members(config)
        self._members = members
        self._founding = Founding(config.node_id, data.incarnation, members, self.stance, now())
        self._hellos: dict[int, Hello] = {}
        self._said = ""
        self._said_at = now() - REMIND_S + SETTLE_S
        self._is_over = False

    def message(self) -> str:
        """What the node waits for; "" once it has a cluster."""
        return "" if self._is_over else self._founding.message()

    def on_connected(self, peer: int, hello: Hello) -> bool:
        """A node has connected, and says what it is. True: nothing else has to know."""
        self._hellos[peer] = hello
        stance = Stance(hello.stance)
        self._founding.heard(peer, hello.cluster_id, hello.incarnation, stance)
        if hello.cluster_id and hello.recorded == self._data.incarnation:
            self._join(hello)  # Its founder has counted this directory in.
        return True

    def on_disconnected(self, peer: int, reason: str) -> None:
        """A connection has ended."""
        self._hellos.pop(peer, None)
        self._founding.gone(peer)

    def on_message(self, message: PeerMessage) -> None:
        """A leader that sends this node entries, or signs of life, has it as a member."""
        hello = self._hellos.get(message.sender)
        is_leader = isinstance(message, Append | Heartbeat | SnapshotOffer)
        if hello is not None and hello.cluster_id and is_leader:
            self._join(hello)

    def on_tick(self) -> None:
        """A tick has passed: found the cluster if it is time."""
        if self._is_over:
            return
        now = self._now()
        voters = self._founding.decide(now)
        if voters is not None:
            self._found(voters)
            return
        message = self.message()
        pause_s = REMIND_S if message == self._said else SETTLE_S
        if now - self._said_at >= pause_s:
            log.warning("node=%d waits: %s", self._config.node_id, message)
            self._said, self._said_at = message, now

    def _found(self, voters: Mapping[int, int]) -> None:
        membership = first_membership(self._members, voters, new_id(), new_id())
        log.info(
            "node=%d founds cluster=%s voters=%s",
            self._config.node_id,
            membership.cluster_id,
            ",".join(map(str, voters)),
        )
        change = partial(found, self._data, membership, self._config.wal_segment_bytes)
        self._end(change)

    def _join(self, hello: Hello) -> None:
        heals = founding.is_another(self._data.incarnation, hello.recorded)
        log.info(
            "node=%d joins cluster=%s by node=%d heals=%s",
            self._config.node_id,
            hello.cluster_id,
            hello.sender,
            heals,
        )
        change = partial(self._data.join, hello.cluster_id, heals=heals)
        self._end(change)

    def _end(self, change: Callable[[], None]) -> None:
        if not self._is_over:
            self._is_over = True
            self._begin_again(change)
