"""The network between simulated members: what `raftha.net.transport` and the wires below it do.

Theory of operation. Each pair of members has a *link*. A connection over it has a generation, and
each side comes to know of its beginning and its end at a time of its own; a message that is on its
way when the connection ends is lost. While both members are up and nothing blocks the link, it is
dialled again and again. On top of it, by the seed's swarm: delay, loss, loss of certain kinds of
messages only, stragglers, duplication, reordering, messages that outlive their connection, blocking
of one direction or both, which loses messages silently, and clogs, which hold them up and then let
all through. Some messages travel as the bytes that `raftha.net.wire` makes of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Protocol

from raftha.membership import Membership
from raftha.net import wire
from raftha.net.wire import Hello
from raftha.node.messages import PeerMessage
from tests.sim.swarm import Swarm
from tests.sim.world import Actor, World

STRAGGLER_S = 1.0
_PREFIX_BYTES = 4


class Station(Actor, Protocol):
    """A member, as the network sees it."""

    @property
    def is_up(self) -> bool: ...
    def on_message(self, message: PeerMessage) -> None: ...
    def on_connected(self, peer: int, hello: Hello) -> None: ...
    def on_disconnected(self, peer: int) -> None: ...
    def on_removed(self) -> None: ...

    def hello(self, to: int) -> Hello: ...
    def admits(self, hello: Hello) -> bool: ...

    @property
    def incarnation(self) -> int: ...
    @property
    def membership(self) -> Membership: ...


class Link:
    """The connection of two members, `low` and `high`; generation 0 stands for none."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.generation = 0
        self.last_generation = 0
        self.known = {low: 0, high: 0}
        """The generation that each side believes in."""


class Network:
    """All links."""

    def __init__(self, world: World, swarm: Swarm, stations: Mapping[int, Station]) -> None:
        self._world = world
        self._rng = world.stream("network")
        self._swarm = swarm
        self._stations = stations
        self._links = {
            pair: Link(*pair) for pair in itertools.combinations(range(1, swarm.nodes + 1), 2)
        }
        self._arrivals: dict[tuple[int, int], float] = {}
        self._is_calm = False
        self.blocked: set[tuple[int, int]] = set()
        self.clogged_until: dict[tuple[int, int], float] = {}
        for link in self._links.values():
            world.at(0.0, self._dial, link)

    def is_connected(self, node: int, peer: int) -> bool:
        """Whether `node` believes to have a connection."""
        return self._link(node, peer).known[node] != 0

    def send(self, message: PeerMessage) -> None:
        """Send on the sender's connection, if it has one."""
        link = self._link(message.sender, message.to)
        generation = link.known[message.sender]
        if generation == 0 or generation != link.generation:
            return
        if self._is_lost(message):
            self._world.counts["message lost"] += 1
            return
        if self._rng.random() < self._swarm.wire_chance:
            decoded = wire.decode(wire.encode(message)[_PREFIX_BYTES:])
            self._world.counts["message as bytes"] += 1
            assert decoded == message, "what is decoded is what was encoded"
            message = decoded
        self._post(link, generation, message)
        if self._swarm.duplication and self._rng.random() < self._duplication:
            self._world.counts["message twice"] += 1
            self._post(link, generation, message)

    def reset(self, node: int, peer: int) -> None:
        """End the connection; both sides are told, some time."""
        link = self._link(node, peer)
        ended, link.generation = link.generation, 0
        if ended:
            for side in (link.low, link.high):
                self._world.at(
                    self._delay(), self._end, link, ended, side, actor=self._stations[side]
                )

    def leave(self, node: int, *, is_silent: bool) -> None:
        """`node` is gone; its peers are told only unless the crash `is_silent`."""
        for peer in self._stations:
            if peer == node:
                continue
            link = self._link(node, peer)
            ended, link.generation = link.generation, 0
            link.known[node] = 0
            if ended and not is_silent:
                self._world.at(
                    self._delay(), self._end, link, ended, peer, actor=self._stations[peer]
                )

    def dismiss(self, node: int, removed: Collection[int]) -> None:
        """`node` has learned that these were removed: it tells them, and ends the connection."""
        for peer in sorted(removed):
            if peer != node and self.is_connected(node, peer):
                if self._link(node, peer).known[node] == self._link(node, peer).generation:
                    self._tell_removed(node, peer)
                self.reset(node, peer)

    def _tell_removed(self, node: int, peer: int) -> None:
        station = self._stations[peer]
        # It believes only a member whose data directory its own log records.
        own = self._stations[node].incarnation
        is_believed = station.is_up and station.membership.recorded(node) == own
        if is_believed and (node, peer) not in self.blocked:
            self._world.at(self._delay(), station.on_removed, actor=station)

    def calm(self) -> None:
        """From now on every message arrives, and nothing is blocked."""
        self._is_calm = True
        self.blocked.clear()

    def held_up_s(self) -> float:
        """For how long messages that are late hold up those behind them."""
        if not self._swarm.is_fifo:
            return 0.0
        return max(0.0, max(self._arrivals.values(), default=0.0) - self._world.now)

    def _link(self, one: int, other: int) -> Link:
        return self._links[(one, other) if one < other else (other, one)]

    @property
    def _duplication(self) -> float:
        return 0.0 if self._is_calm else self._swarm.duplication

    def _delay(self) -> float:
        return self._swarm.delay_s * (0.3 + self._rng.expovariate(1.4))

    def _is_lost(self, message: PeerMessage) -> bool:
        if self._is_calm:
            return False
        if (message.sender, message.to) in self.blocked:
            return True
        loss = self._swarm.loss
        if type(message) in self._swarm.lossy_kinds:
            loss = max(loss, self._swarm.lossy_chance)
        return self._rng.random() < loss

    def _is_late(self, message: PeerMessage) -> bool:
        if self._is_calm or type(message) not in self._swarm.straggler_kinds:
            return False
        return self._rng.random() < self._swarm.straggler_chance

    def _post(self, link: Link, generation: int, message: PeerMessage) -> None:
        arrival = self._world.now + self._delay()
        if self._is_late(message):
            self._world.counts["message late"] += 1
            arrival += self._rng.uniform(0, STRAGGLER_S)
        way = message.sender, message.to
        if self.clogged_until.get(way, 0.0) > arrival and not self._is_calm:
            self._world.counts["message held up"] += 1
            arrival = self.clogged_until[way] + self._delay()
        last = self._arrivals.get(way, 0.0)
        if arrival < last:
            if self._swarm.is_fifo:
                arrival = last
            else:
                self._world.counts["message overtook"] += 1
        self._arrivals[way] = max(arrival, last)
        self._world.at(
            arrival - self._world.now,
            self._deliver,
            link,
            generation,
            message,
            self._stations[message.sender].incarnation,
            actor=self._stations[message.to],
        )

    def _deliver(self, link: Link, generation: int, message: PeerMessage, incarnation: int) -> None:
        is_current = link.generation == generation == link.known[message.to]
        station = self._stations[message.to]
        # A connection of an earlier data directory is closed before the next one's counts.
        is_ghost = incarnation == self._stations[message.sender].incarnation
        is_ghost = is_ghost and type(message) in self._swarm.ghost_kinds and station.is_up
        if is_current or (is_ghost and not self._is_calm):
            self._world.note(message.to, "message", message)
            station.on_message(message)

    # Connections.

    def _dial(self, link: Link) -> None:
        low, high = self._stations[link.low], self._stations[link.high]
        is_blocked = {(link.low, link.high), (link.high, link.low)} & self.blocked
        if low.is_up and high.is_up and not is_blocked and link.generation == 0:
            self._call(link, low.membership, high.membership)
        self._world.at(self._rng.uniform(*self._swarm.redial_s), self._dial, link)

    def _call(self, link: Link, lows: Membership, highs: Membership) -> None:
        """The higher id dials the lower; a removed node that dials learns of its removal.

        A newcomer may know no member that is still there: then the lower id dials.
        """
        if link.low in highs.members and link.high in lows.removed:
            self._tell_removed(link.low, link.high)
        elif link.high in lows.members and link.low in highs.removed:
            self._tell_removed(link.high, link.low)
        elif (link.low in highs.members or link.high in lows.members) and self._agree(link):
            link.last_generation += 1
            link.generation = link.last_generation
            self._begin(link, link.generation, link.low)

    def _agree(self, link: Link) -> bool:
        """True if each side accepts the other's Hello; the dialled side checks first."""
        low, high = self._stations[link.low], self._stations[link.high]
        if low.admits(high.hello(link.low)) and high.admits(low.hello(link.high)):
            return True
        self._world.counts["stranger refused"] += 1
        return False

    def _begin(self, link: Link, generation: int, side: int) -> None:
        """The lower member accepts first, then the higher one hears of it."""
        self._world.at(
            self._delay(), self._accept, link, generation, side, actor=self._stations[side]
        )

    def _accept(self, link: Link, generation: int, side: int) -> None:
        if link.generation != generation:
            return
        station = self._stations[side]
        peer = link.high if side == link.low else link.low
        if link.known[side]:
            station.on_disconnected(peer)
        link.known[side] = generation
        self._world.note(side, "connected", f"to {peer}")
        station.on_connected(peer, self._stations[peer].hello(side))
        if side == link.low:
            self._begin(link, generation, link.high)

    def _end(self, link: Link, ended: int, side: int) -> None:
        if link.known[side] != ended:
            return
        link.known[side] = 0
        peer = link.high if side == link.low else link.low
        self._world.note(side, "disconnected", f"from {peer}")
        self._stations[side].on_disconnected(peer)
