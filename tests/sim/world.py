"""Virtual time: a queue of events, in the order in which they happen, and the story they tell.

Theory of operation. Nothing in a simulation waits: `at` puts a function into the queue, `run` calls
what is next and sets `now` to its time. Events of equal time happen in the order in which they were
put in. Whatever is random comes from a `stream`, a generator seeded with the simulation's seed and
a name, so one seed decides everything, and a fault that asks for more numbers doesn't shift those
that decide something else.

An event may belong to an *actor* (a member). Then it is dropped if the actor has crashed since it
was put in, and put off while the actor is paused; `after` is called with the actor when it is done.

`digest` is a hash over all events' times and order: equal digests, equal runs. `recent` holds
the last things worth telling, for the report of a failure.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

RECENT_MAX = 60
EVENTS_MAX = 150_000
"""An event loop that never ends is a failure like any other."""


class Violation(Exception):
    """An invariant doesn't hold."""


class Actor(Protocol):
    """The owner of events."""

    life: int
    paused_until: float


class World:
    """Time, randomness, and what happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self.digest = 0
        self.is_done = False
        self.is_settled = False
        """Whether the cluster has shown, after the chaos, that it has lost nothing."""
        self.recent: deque[tuple[float, int, str, Any]] = deque(maxlen=RECENT_MAX)
        self.counts: Counter[str] = Counter()
        self.after: Callable[[Any], None] = lambda actor: None
        self._queue: list[
            tuple[float, int, Actor | None, int, Callable[..., None], tuple[Any, ...]]
        ] = []
        self._sequence = 0

    def stream(self, name: str) -> Random:
        """A generator of its own for `name`; strings are hashed the same in all processes."""
        return Random(f"{self.seed}/{name}")

    def at(
        self, delay: float, function: Callable[..., None], *args: Any, actor: Actor | None = None
    ) -> None:
        """Call `function` in `delay` seconds, unless `actor` has crashed by then."""
        self._sequence += 1
        life = actor.life if actor is not None else 0
        event = (self.now + delay, self._sequence, actor, life, function, args)
        heapq.heappush(self._queue, event)

    def note(self, node: int, kind: str, detail: Any = "") -> None:
        """Add a line to the story; `node` 0 is the world."""
        self.recent.append((self.now, node, kind, detail))
        self.counts[kind] += 1

    def run(self, until: float) -> None:
        """Run events up to the time `until`, or until one sets `is_done`."""
        queue = self._queue
        while queue and queue[0][0] <= until and not self.is_done:
            event = heapq.heappop(queue)
            time, sequence, actor, life, function, args = event
            if actor is not None:
                if actor.life != life:
                    continue
                if actor.paused_until > time:
                    heapq.heappush(queue, (actor.paused_until, *event[1:]))
                    continue
            self.now = time
            self.events += 1
            if self.events > EVENTS_MAX:
                raise Violation(f"more than {EVENTS_MAX} events: something goes round in circles")
            self.digest = hash((self.digest, time, sequence))
            function(*args)
            if actor is not None and actor.life == life:
                self.after(actor)
        if not self.is_done:
            self.now = until

    def story(self) -> str:
        """The last events, one a line."""
        lines = ["    seconds  node  event             detail"]
        for time, node, kind, detail in self.recent:
            who = str(node) if node else "-"
            lines.append(f"{time:11.6f}  {who:>4}  {kind:16}  {_brief(detail)}")
        return "\n".join(lines)


def _brief(detail: Any) -> str:
    """A message without its entries' bytes; anything else as it is."""
    if not hasattr(detail, "_fields"):
        return str(detail)
    parts = []
    for name, value in zip(detail._fields, detail, strict=True):
        if name == "entries":
            value = " ".join(f"{entry.index}t{entry.term}" for entry in value)  # noqa: PLW2901
        elif isinstance(value, bytes):
            value = f"{len(value)} bytes"  # noqa: PLW2901
        parts.append(f"{name}={value}")
    return f"{type(detail).__name__} {' '.join(parts)}"
