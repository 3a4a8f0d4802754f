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
        self.is_full = False
        """True while nothing whose reply may be large should start."""
        self._bytes_max = bytes_max
        self._reserved = 0
        self._unsent: dict[Waiter, int] = {}
        self._unsent_bytes = 0
        self._stalled_since: dict[Waiter, float] = {}
        self._waiting: dict[Waiter, None] = {}  # In their order.
        self._check: asyncio.TimerHandle | None = None

    @property
    def used_bytes(self) -> int:
        """Bytes that are reserved or unsent."""
        return self._reserved + self._unsent_bytes

    def reserve(self, size: int) -> bool:
        """Take `size` bytes; False if they aren't free. If none is used, any size is granted."""
        if self.used_bytes and self.used_bytes + size > self._bytes_max:
            return False
        self._reserved += size
        self._update()
        return True

    def release(self, size: int) -> None:
        """Give reserved bytes back."""
        assert 0 <= size <= self._reserved
        self._reserved -= size
        self._update()
        self._wake(WOKEN_MAX)

    def wait(self, waiter: Waiter) -> None:
        """Call `on_room` of `waiter` when there may be room."""
        self._waiting[waiter] = None
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
        self._update()
        if size < before:
            self._wake(WOKEN_MAX)

    def forget(self, waiter: Waiter) -> None:
        """A connection has ended."""
        self._waiting.pop(waiter, None)
        self.note_unsent(waiter, 0)

    def _update(self) -> None:
        self.is_full = self.used_bytes >= self._bytes_max

    def _wake(self, count: int) -> None:
        for waiter in list(self._waiting)[:count]:
            del self._waiting[waiter]
            waiter.on_room()

    def _on_check(self) -> None:
        self._check = None
        if not self._waiting:
            return
        self._cut_off_stalled()
        self._wake(len(self._waiting))

    def _cut_off_stalled(self) -> None:
        limit = self._bytes_max // 2
        now = asyncio.get_running_loop().time()
        for waiter in sorted(self._unsent, key=lambda w: self._unsent[w], reverse=True):
            if self._unsent_bytes <= limit:
                return
            if now - self._stalled_since[waiter] >= CROWDED_S:
                self.note_unsent(waiter, 0)
                waiter.abort()
