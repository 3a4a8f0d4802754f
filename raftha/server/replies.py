"""The memory of replies: a budget for all connections of a server together.

Theory of operation. Each connection bounds its own replies, but many connections together may still
have more than the process has memory for. So a request whose reply may be large reserves the most
that the reply can have before it starts, and waits if that isn't free. Once the reply is written,
the bytes that the client hasn't taken count instead.

A client that takes nothing must not keep the budget from the others. While connections wait for
room, the ones that have taken nothing for `CROWDED_S` are cut off, the largest first, until half of
the budget is free of unsent replies.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

BYTES_MAX = 256 << 20
CROWDED_S = 2.0
WOKEN_MAX = 8
"""Connections that one release of room lets try again."""
CHECK_S = 0.05
"""How often those that wait try again anyway, and stalled connections are looked for."""


class Waiter(Protocol):
    """A connection."""

    def on_room(self) -> None:
        """Try again."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class ReplyBudget:
    """Used from one event loop only."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        """Bytes that are reserved or unsent. A connection's hot path counts here by itself."""
        self.waiting: dict[Waiter, None] = {}
        """Connections that wait for room, in their order."""
        self._unsent: dict[Waiter, int] = {}
        self._unsent_bytes = 0
        self._stalled_since: dict[Waiter, float] = {}
        self._check: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """True while nothing whose reply may be large should start."""
        return self.used_bytes >= self.bytes_max

    def reserve(self, size: int) -> bool:
        """Take `size` bytes; False if they aren't free. If none is used, any size is granted."""
        if self.used_bytes and self.used_bytes + size > self.bytes_max:
            return False
        self.used_bytes += size
        return True

    def release(self, size: int) -> None:
        """Give reserved bytes back."""
        self.used_bytes -= size
        assert self.used_bytes >= self._unsent_bytes
        self.wake()

    def wait(self, waiter: Waiter) -> None:
        """Call `on_room` of `waiter` when there may be room."""
        self.waiting[waiter] = None
        if self._check is None:
            self._check = asyncio.get_running_loop().call_later(CHECK_S, self._on_check)

    def note_unsent(self, waiter: Waiter, size: int) -> None:
        """Count what the client of a connection that is stalled hasn't taken yet; 0 at its end."""
        before = self._unsent.pop(waiter, 0)
        if size:
            self._unsent[waiter] = size
            self._stalled_since.setdefault(waiter, asyncio.get_running_loop().time())
        else:
            self._stalled_since.pop(waiter, None)
        self._unsent_bytes += size - before
        self.used_bytes += size - before
        if size < before:
            self.wake()

    def forget(self, waiter: Waiter) -> None:
        """A connection has ended."""
        self.waiting.pop(waiter, None)
        self.note_unsent(waiter, 0)

    def wake(self, count: int = WOKEN_MAX) -> None:
        """Let the first of those that wait try again."""
        for waiter in list(self.waiting)[:count]:
            del self.waiting[waiter]
            waiter.on_room()

    def _on_check(self) -> None:
        self._check = None
        if not self.waiting:
            return
        self._cut_off_stalled()
        self.wake(len(self.waiting))

    def _cut_off_stalled(self) -> None:
        limit = self.bytes_max // 2
        now = asyncio.get_running_loop().time()
        for waiter in sorted(self._unsent, key=lambda w: self._unsent[w], reverse=True):
            if self._unsent_bytes <= limit:
                return
            if now - self._stalled_since[waiter] >= CROWDED_S:
                self.note_unsent(waiter, 0)
                waiter.abort()
