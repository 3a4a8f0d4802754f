"""The membership: the nodes of the cluster, as the log records them.

Theory of operation. The first membership comes from the settings, which are the same on all nodes.
Each later one is an entry of the log, and takes effect on a node as soon as it is in the node's
log, committed or not (thesis 4.1). If the entry is cut off again, so is its effect. One voter comes
or goes at a time, so that any majority of the old membership and any majority of the new one share
a node. A new node is a *learner* first: it receives the log and counts for no quorum. It becomes a
voter once it has caught up (thesis 4.2.1). The ids of removed nodes are recorded, and never used
again. A member's address and region are data, which an entry of the log can change: they count for
no quorum.

A voter's *incarnation*, the random number of its data directory, is recorded with it. A node that
comes back with another directory has lost its promises, so its votes and acknowledgements count for
nothing until a leader has healed it and an entry records the new incarnation.

Each membership names the cluster and the *lineage*: the history that the log belongs to. An
operator who makes a cluster go on from one survivor forks the history, and gives it a new lineage.

Payload of a MEMBERSHIP entry, msgpack: [version 2, {id: [address, region, is_voter, is_standby,
incarnation]}, [removed ids], cluster id, lineage].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import msgpack

from raftha.config import MEMBERS_MAX, REGION_BYTES_MAX, parse_address
from raftha.errors import ConfigError, InvalidRequest

VERSION = 2
REMOVED_MAX = 10_000
DEFAULT_REGION = "primary"


class Member(NamedTuple):
    """A node of the cluster. `address` is "host:port" of its peer listener.

    `is_standby`: a learner that stays one, even if it has caught up, until it is promoted.
    `incarnation`: that of its data directory, 0 for a node that was never a voter.
    """

    address: str
    region: str = DEFAULT_REGION
    is_voter: bool = True
    is_standby: bool = False
    incarnation: int = 0


@dataclass(frozen=True)
class Membership:
    """The nodes of a cluster, and the ids of removed ones. Immutable: a change makes a new one."""

    members: Mapping[int, Member]
    removed: frozenset[int] = frozenset()
    cluster_id: str = ""
    lineage: str = ""

    @classmethod
    def first(
        cls, addresses: Mapping[int, str], regions: Mapping[int, str] | None = None
    ) -> Membership:
        """The membership that a cluster begins with: all voters, by default in `DEFAULT_REGION`."""
        regions = regions or {}
        return cls(
            {
                node_id: Member(address, regions.get(node_id, DEFAULT_REGION))
                for node_id, address in sorted(addresses.items())
            }
        )

    def recorded(self, node_id: int) -> int:
        """The incarnation recorded for a node; 0 if none is."""
        member = self.members.get(node_id)
        return member.incarnation if member is not None else 0

    def knows(self, node_id: int, incarnation: int) -> bool:
        """Whether nothing recorded contradicts this incarnation; 0 stands for an unknown one."""
        return incarnation == 0 or self.recorded(node_id) in (0, incarnation)

    @cached_property
    def voters(self) -> tuple[int, ...]:
        """The ids of the voters, in ascending order."""
        return tuple(sorted(i for i, member in self.members.items() if member.is_voter))

    @cached_property
    def quorum(self) -> int:
        """How many voters are a majority."""
        return len(self.voters) // 2 + 1

    def place(self, member: int, regions: Sequence[str]) -> int:
        """The place of a member's region in `regions`; their number if it isn't among them."""
        region = self.members[member].region
        return regions.index(region) if region in regions else len(regions)

    def better_regions(self, member: int, regions: Sequence[str], without: int = 0) -> int:
        """How many regions before a member's own have voters; voter `without` doesn't count."""
        if member not in self.members:
            return 0
        places = {self.place(voter, regions) for voter in self.voters if voter != without}
        return sum(place < self.place(member, regions) for place in places)

    def with_learner(
        self, node_id: int, address: str, region: str, *, is_standby: bool = False
    ) -> Membership:
        """With a new node as a learner. InvalidRequest if the node can't be added."""
        if node_id in self.removed:
            raise InvalidRequest(
                f"node {node_id} was removed", hint="ids are never used again, take a new one"
            )
        if node_id in self.members:
            raise InvalidRequest(f"node {node_id} is a member already")
        if not 0 < node_id < 1 << 32:
            raise InvalidRequest(f"a node id must be from 1 to 2**32 - 1, got {node_id}")
        if len(self.members) >= MEMBERS_MAX:
            raise InvalidRequest(f"a cluster has at most {MEMBERS_MAX} members")
        self._check_address(node_id, address)
        _check_region(region)
        learner = Member(address, region, is_voter=False, is_standby=is_standby)
        return replace(self, members={**self.members, node_id: learner})

    def with_address(self, node_id: int, address: str) -> Membership:
        """With another address of a member. InvalidRequest if it can't have this one."""
        member = self._member(node_id)
        self._check_address(node_id, address)
        return replace(self, members={**self.members, node_id: member._replace(address=address)})

    def with_region(self, node_id: int, region: str) -> Membership:
        """With another region of a member. InvalidRequest if that is no name of a region."""
        member = self._member(node_id)
        _check_region(region)
        return replace(self, members={**self.members, node_id: member._replace(region=region)})

    def _member(self, node_id: int) -> Member:
        member = self.members.get(node_id)
        if member is None:
            raise InvalidRequest(f"node {node_id} is not a member")
        return member

    def _check_address(self, node_id: int, address: str) -> None:
        if any(i != node_id and member.address == address for i, member in self.members.items()):
            raise InvalidRequest(f"{address} is another member's address")
        try:
            parse_address("address", address)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from error

    def with_voter(self, node_id: int, incarnation: int = 0) -> Membership:
        """With a learner turned into a voter, and its incarnation recorded."""
        voter = self.members[node_id]._replace(
            is_voter=True, is_standby=False, incarnation=incarnation
        )
        return replace(self, members={**self.members, node_id: voter})

    def with_incarnation(self, node_id: int, incarnation: int) -> Membership:
        """With a member that has another data directory, and has healed in it."""
        member = self.members[node_id]._replace(incarnation=incarnation)
        return replace(self, members={**self.members, node_id: member})

    def with_standby(self, node_id: int, *, is_standby: bool) -> Membership:
        """With a learner that is, or is no longer, a standby. InvalidRequest for a voter."""
        if self.members[node_id].is_voter:
            raise InvalidRequest(f"node {node_id} is a voter, and can only be removed")
        learner = self.members[node_id]._replace(is_standby=is_standby)
        return replace(self, members={**self.members, node_id: learner})

    def without(self, node_id: int) -> Membership:
        """Without a node, whose id is recorded as removed. InvalidRequest if it must stay."""
        self._member(node_id)
        if self.voters == (node_id,):
            raise InvalidRequest(f"node {node_id} is the only voter")
        if len(self.removed) >= REMOVED_MAX:
            raise InvalidRequest(f"{REMOVED_MAX} nodes were removed already")
        members = {i: member for i, member in self.members.items() if i != node_id}
        return replace(self, members=members, removed=self.removed | {node_id})

    def changed(self, other: Membership) -> set[int]:
        """The ids of the nodes that differ in `other`."""
        ids = self.members.keys() | other.members.keys()
        differing = {i for i in ids if self.members.get(i) != other.members.get(i)}
        return differing | (self.removed ^ other.removed)

    def encode(self) -> bytes:
        """The payload of the log entry for this membership."""
        members = {i: tuple(member) for i, member in sorted(self.members.items())}
        packed: bytes = msgpack.packb(
            [VERSION, members, sorted(self.removed), self.cluster_id, self.lineage]
        )
        return packed

    @classmethod
    def decode(cls, payload: bytes) -> Membership:
        """Decode the bytes of `encode`. ValueError if they are not a membership."""
        try:
            values: Any = msgpack.unpackb(payload, strict_map_key=False, use_list=False)
            version, members, removed, cluster_id, lineage = values
            if version != VERSION:
                raise ValueError(f"membership format {version}; this raftha reads {VERSION}")
            membership = cls(
                {int(node_id): _decode_member(fields) for node_id, fields in members.items()},
                frozenset(removed),
                cluster_id,
                lineage,
            )
        except (TypeError, AttributeError, msgpack.UnpackException) as error:
            raise ValueError(f"not a membership: {error}") from error
        if type(cluster_id) is not str or type(lineage) is not str:
            raise ValueError("the ids of a cluster and a lineage are text")
        if not membership.voters:
            raise ValueError("a membership has a voter")
        return membership


def _check_region(region: str) -> None:
    if not region:
        raise InvalidRequest("a region has a name")
    if len(region.encode()) > REGION_BYTES_MAX:
        raise InvalidRequest(f"a region's name has at most {REGION_BYTES_MAX} bytes")
    if not region.isprintable():
        raise InvalidRequest("a region's name has no control characters")


def _decode_member(fields: tuple[Any, ...]) -> Member:
    kinds = (str, str, bool, bool, int)
    if len(fields) != len(kinds) or not all(
        type(field) is kind for field, kind in zip(fields, kinds, strict=True)
    ):
        raise ValueError(f"a member has {len(kinds)} fields, of their types")
    return Member(*fields)
