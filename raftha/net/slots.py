"""Slots for incoming connections that are undecided: before their Hello is accepted.

Theory of operation. Anyone can connect and send nothing, so undecided connections are bounded. But
a plain bound keeps members out once strangers have filled it. Three rules prevent that:

  S1  A new connection is never refused for lack of a slot. It pushes out an older one instead.
  S2  Strangers share `STRANGERS_MAX` slots. The connection that is pushed out is the oldest of the
      address that has the most, so one busy address can't push out the others.
  S3  Each address of a member has `MEMBER_MAX` slots of its own, which strangers at other addresses
      can't take. A new connection pushes out the oldest of the same address.

A member sends its Hello at once, and is accepted long before it is the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

STRANGERS_MAX = 64
MEMBER_MAX = 32

C = TypeVar("C")


class Slots(Generic[C]):
    """The undecided connections of one listener."""

    def __init__(self) -> None:
        self._host_of: dict[C, str] = {}
        self._by_host: dict[str, dict[C, None]] = {}  # Each from the oldest to the newest.
        self._members: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self._host_of)

    def set_members(self, hosts: Iterable[str]) -> None:
        """The numeric addresses of the members, as far as they are known."""
        self._members = frozenset(hosts)

    def enter(self, connection: C, host: str) -> C | None:
        """Give `connection` a slot; return the one that it pushes out, if any."""
        self._host_of[connection] = host
        self._by_host.setdefault(host, {})[connection] = None
        busiest = self._busiest_beyond_limit(host)
        if busiest is None:
            return None
        oldest = next(iter(self._by_host[busiest]))
        self.leave(oldest)
        return oldest

    def leave(self, connection: C) -> None:
        """Free the slot of `connection`, if it has one."""
        host = self._host_of.pop(connection, None)
        if host is None:
            return
        connections = self._by_host[host]
        del connections[connection]
        if not connections:
            del self._by_host[host]

    def clear(self) -> None:
        """Free all slots."""
        self._host_of.clear()
        self._by_host.clear()

    def _busiest_beyond_limit(self, host: str) -> str | None:
        """The address that must give up a slot now that `host` has taken one."""
        if host in self._members:
            return host if len(self._by_host[host]) > MEMBER_MAX else None
        strangers = {h: len(c) for h, c in self._by_host.items() if h not in self._members}
        if sum(strangers.values()) <= STRANGERS_MAX:
            return None
        return max(strangers, key=strangers.__getitem__)
