"""What the cluster uses, by its log, and what a node supports: versions that only rise.

Theory of operation. A node supports a range of protocols, a range of versions of its state machine,
and the commands of that machine: its `Abilities`. The log records what the cluster uses: its
`Versions`. The leader proposes an entry with higher ones once every member supports them. Each
replica merges the entry into the ones before it: the greater number, all commands. So the order and
the repetition of such entries don't matter, and nothing is ever lowered.

A command depends on the versions in force at its place in the log, never on those of the node that
runs it. A node that does not support what the log uses stops with `UpgradeRequired`, before it
applies anything of it.

Payload of an ADMIN entry, msgpack: `[1, what, ...]`; the rest depends on `what`:

    "versions", protocol, machine, [command, ...]

`raftha/storage/state/catalog.py` has the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgpack

from raftha import version
from raftha.errors import UpgradeRequired

ADMIN_FORMAT = 1
VERSIONS = "versions"
COMMANDS_MAX = 1000
"""Commands of one state machine."""
COMMANDS_BYTES_MAX = 64 << 10
"""Bytes of their names together."""
MACHINE_VERSION_MAX = (1 << 31) - 1


class Machine(Protocol):
    """What this module needs to know of a `StateMachine`."""

    @property
    def version(self) -> int: ...
    @property
    def oldest_version(self) -> int: ...
    @property
    def commands(self) -> Any: ...


class Versions(NamedTuple):
    """What the log uses: protocol, version of the state machine, and the commands of it."""

    protocol: int
    machine: int
    commands: frozenset[str]

    def raised(self, other: Versions) -> Versions:
        """Return the greater of both, in every respect."""
        return Versions(
            max(self.protocol, other.protocol),
            max(self.machine, other.machine),
            self.commands | other.commands,
        )

    def dump(self) -> list[Any]:
        """Return the fields as msgpack can pack them, the same on all replicas."""
        return [self.protocol, self.machine, sorted(self.commands)]

    @classmethod
    def load(cls, fields: Any) -> Versions:
        """Return the versions in the result of `dump`. ValueError if they are none."""
        if type(fields) not in (list, tuple) or len(fields) != 3:
            raise ValueError("versions have three fields")
        protocol, machine, commands = fields
        if type(protocol) is not int or type(machine) is not int:
            raise ValueError("versions are numbers")
        if type(commands) not in (list, tuple) or not all(type(n) is str for n in commands):
            raise ValueError("commands are names")
        return cls(protocol, machine, frozenset(commands))


class Abilities(NamedTuple):
    """What one node supports: two ranges, and its commands. `release` is its version of raftha."""

    release: str
    protocol_oldest: int
    protocol: int
    machine_oldest: int
    machine: int
    commands: frozenset[str]

    def refusal(self, used: Versions) -> str:
        """Why a node with these abilities can't be part of a cluster that uses `used`, or ""."""
        for what, oldest, newest, number in (
            ("protocol", self.protocol_oldest, self.protocol, used.protocol),
            ("version of the state machine", self.machine_oldest, self.machine, used.machine),
        ):
            if not oldest <= number <= newest:
                supported = f"{oldest} to {newest}" if oldest != newest else f"{newest}"
                return f"the cluster uses {what} {number}, and the node supports {supported}"
        missing = sorted(used.commands - self.commands)
        if missing:
            names = ", ".join(repr(name) for name in missing[:5]) + ", ..." * (len(missing) > 5)
            return f"the cluster uses commands that the node doesn't know: {names}"
        return ""

    def check(self, used: Versions) -> None:
        """Raise UpgradeRequired unless this node supports what the cluster uses."""
        reason = self.refusal(used)
        if reason:
            raise UpgradeRequired(f"this node runs a version that can't take part: {reason}")


def abilities_of(machine: Machine | None) -> Abilities:
    """Return what this build supports, with `machine`; version 0 stands for no machine."""
    oldest, newest = version.PROTOCOL_OLDEST, version.PROTOCOL_VERSION
    if machine is None:
        return Abilities(version.VERSION, oldest, newest, 0, 0, frozenset())
    return Abilities(
        version.VERSION,
        oldest,
        newest,
        machine.oldest_version,
        machine.version,
        frozenset(machine.commands),
    )


def common(nodes: Sequence[Abilities]) -> Versions | None:
    """Return the highest versions that all of `nodes` support; None if there are none."""
    protocol = min(node.protocol for node in nodes)
    machine = min(node.machine for node in nodes)
    commands = frozenset.intersection(*(node.commands for node in nodes))
    versions = Versions(protocol, machine, commands)
    return None if any(node.refusal(versions) for node in nodes) else versions


def pack_names(commands: frozenset[str]) -> bytes:
    """Pack the names of commands, for a message."""
    packed: bytes = msgpack.packb(sorted(commands))
    return packed


def unpack_names(packed: bytes) -> frozenset[str]:
    """Return the names in the result of `pack_names`. ValueError if they are none."""
    try:
        names = msgpack.unpackb(packed, use_list=False, max_array_len=COMMANDS_MAX, max_map_len=0)
    except msgpack.UnpackException as error:
        raise ValueError(str(error)) from error
    if type(names) is not tuple or not all(type(name) is str for name in names):
        raise ValueError("commands are names")
    return frozenset(names)


def encode_versions(versions: Versions) -> bytes:
    """Return the payload of the ADMIN entry that raises the cluster to `versions`."""
    packed: bytes = msgpack.packb([ADMIN_FORMAT, VERSIONS, *versions.dump()])
    return packed


def decode_admin(payload: bytes) -> tuple[str, tuple[Any, ...]]:
    """Return what an ADMIN entry is about, and its fields. UpgradeRequired for a later format."""
    try:
        form, what, *fields = msgpack.unpackb(payload, use_list=False, raw=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise UpgradeRequired(f"an entry of the log can't be read: {error}") from error
    if form != ADMIN_FORMAT or type(what) is not str:
        raise _unknown(what)
    return what, tuple(fields)


def decode_versions(payload: bytes) -> Versions:
    """Return the versions in the payload of an ADMIN entry that has some. UpgradeRequired."""
    what, fields = decode_admin(payload)
    if what != VERSIONS:
        raise _unknown(what)
    return load_versions(fields)


def load_versions(fields: tuple[Any, ...]) -> Versions:
    """Return the versions in the fields of an ADMIN entry. UpgradeRequired."""
    try:
        return Versions.load(fields)
    except ValueError as error:
        raise UpgradeRequired(f"an entry of the log can't be read: {error}") from error


def _unknown(what: object) -> UpgradeRequired:
    return UpgradeRequired(f"the log has an entry {what!r:.40} that this version doesn't know")
