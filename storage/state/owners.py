"""Whose sessions a full table drops: those of the client that has the most.

Theory of operation. The group that opens a session names its *owner*: the node that the client
asked, the client's host and its connection, each as a number. It is in the log, so all replicas
agree. A full table drops a session of the greediest client:

  S1  of the host with the most sessions at one node; with equal numbers, of the one among them
      whose session was idle longest
  S2  there, of the connection with the most; with equal numbers, as in S1
  S3  of that connection, the one that was idle longest

So a client that opens sessions without end loses its own, and others keep theirs. A client that
opens each on a new connection is told from others on its host by S1's and S2's last rule only.

All of this is a function of the table's content and order, however it came about: the replica that
loaded a checkpoint decides as the one that made it. Each step takes constant time, unless several
have equally many.

An owner has 16 bytes: the node's id (4, little endian), then 6 bytes of the SHA-256 of the host and
6 of that of the connection. A node's own session has zeros there. An empty owner stands for an
unknown one.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from hashlib import sha256

OWNER_BYTES = 16
HOST_BYTES = 10
"""The first bytes of an owner, which name node and host."""
_NODE = struct.Struct("<I")


def make_owner(node_id: int, client: str = "") -> bytes:
    """The owner of a session that `client` opens at a node; "" is the node itself.

    `client` is a host, a space, and whatever tells the connections of that host apart.
    """
    if not client:
        return _NODE.pack(node_id).ljust(OWNER_BYTES, b"\0")
    host = client.partition(" ")[0]
    return _NODE.pack(node_id) + _hash(host) + _hash(client)


def _hash(text: str) -> bytes:
    return sha256(text.encode()).digest()[:6]


class Ranking:
    """Counts, and which keys have the highest."""

    __slots__ = ("_counts", "_keys", "most")

    def __init__(self) -> None:
        self.most = 0
        self._counts: dict[bytes, int] = {}
        self._keys: defaultdict[int, set[bytes]] = defaultdict(set)

    def add(self, key: bytes, change: int) -> None:
        """Add 1 or -1 to the count of `key`."""
        before = self._counts.get(key, 0)
        after = before + change
        if before:
            self._keys[before].discard(key)
            if not self._keys[before]:
                del self._keys[before]
        if after:
            self._counts[key] = after
            self._keys[after].add(key)
        else:
            del self._counts[key]
        if after > self.most or (before == self.most and before not in self._keys):
            self.most = after

    def has_most(self, key: bytes) -> bool:
        """True if no other key has more."""
        return self._counts.get(key) == self.most

    def sole(self) -> bytes | None:
        """The key that alone has the most; None if there are several, or none."""
        keys = self._keys.get(self.most, set())
        return next(iter(keys)) if len(keys) == 1 else None


class _Host:
    __slots__ = ("connections", "ranking", "sessions")

    def __init__(self) -> None:
        self.sessions: OrderedDict[int, bytes] = OrderedDict()
        self.connections: dict[bytes, OrderedDict[int, None]] = {}
        self.ranking = Ranking()


class Owners:
    """The owners of all sessions; each one's sessions are in order, longest idle first."""

    def __init__(self) -> None:
        self._hosts: dict[bytes, _Host] = {}
        self._ranking = Ranking()

    def add(self, session: int, owner: bytes) -> None:
        """A session was opened."""
        host = self._hosts.setdefault(owner[:HOST_BYTES], _Host())
        host.sessions[session] = owner
        host.connections.setdefault(owner, OrderedDict())[session] = None
        host.ranking.add(owner, 1)
        self._ranking.add(owner[:HOST_BYTES], 1)

    def use(self, session: int, owner: bytes) -> None:
        """A session was used: it is the last to go."""
        host = self._hosts[owner[:HOST_BYTES]]
        host.sessions.move_to_end(session)
        host.connections[owner].move_to_end(session)

    def drop(self, session: int, owner: bytes) -> None:
        """A session has ended."""
        name = owner[:HOST_BYTES]
        host = self._hosts[name]
        del host.sessions[session]
        del host.connections[owner][session]
        if not host.connections[owner]:
            del host.connections[owner]
        if not host.sessions:
            del self._hosts[name]
        host.ranking.add(owner, -1)
        self._ranking.add(name, -1)

    def find_greediest(self, sessions: Iterable[tuple[int, bytes]]) -> int:
        """Return the session to drop; `sessions` are all of them, longest idle first."""
        name = self._ranking.sole()
        if name is None:
            hosts = (owner[:HOST_BYTES] for _, owner in sessions)
            name = next(host for host in hosts if self._ranking.has_most(host))
        host = self._hosts[name]
        owner = host.ranking.sole()
        if owner is None:
            owner = next(o for o in host.sessions.values() if host.ranking.has_most(o))
        return next(iter(host.connections[owner]))
