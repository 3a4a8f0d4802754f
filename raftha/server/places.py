"""Pending replies: each request of a connection gets exactly one, in the order of the requests.

Theory of operation. A `Place` is the reply to one request, made from a future. A `ReadRun` is
neighbouring reads that are fetched together, since one fetch costs little more than one read. Each
of its requests has a result of its own, values or an error. A fetch returns as many results as fit
in `RUN_BYTES_MAX`, and the run fetches again for the remaining requests. So a read never fails
because of its neighbours' size, and an error of the whole fetch is the reply to every request that
is still open.

A violation of this rule raises an exception instead of sending a reply too few: a client that
matches replies by their order would take every later reply for another request's. The connection
closes instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from raftha.aio import HaManager
from raftha.client.resp import OK, encode, error_reply
from raftha.errors import CommandFailed, Disconnected, RafthaError
from raftha.server.commands import Read
from raftha.storage.state.sessions import Outcome, receipts
from raftha.types import Receipt

RUN_BYTES_MAX = 1 << 20
"""A fetch for neighbouring reads ends with the request that brings its values to this size."""


class Place:
    """The reply to one request: `finish` encodes it from the result of `future`."""

    __slots__ = ("finish", "future", "reserved")

    def __init__(
        self, future: asyncio.Future[Any], finish: Callable[[Any], bytes], reserved: int = 0
    ) -> None:
        """`reserved`: bytes to give back to the budget of replies."""
        self.reserved = reserved
        self.future: asyncio.Future[Any] | None = future
        self.finish = finish

    def take(self) -> bytes:
        """Return the reply of a future that is done; `future` is None from then on."""
        future, self.future = self.future, None
        assert future is not None
        error = _error_of(future)
        try:
            return self.finish(future.result()) if error is None else error_reply(error)
        except RafthaError as refusal:
            return error_reply(refusal)

    @property
    def is_complete(self) -> bool:
        """True if no more replies will come."""
        return self.future is None


class ReadRun:
    """The replies to neighbouring reads, in order."""

    __slots__ = ("_ha", "_null", "_requests", "future", "reserved")

    def __init__(
        self,
        ha: HaManager,
        requests: Sequence[tuple[Read, list[bytes]]],
        null: bytes,
        reserved: int = 0,
    ) -> None:
        """`requests`: each with the keys that it names. `null`: the encoding of None.

        `reserved`: bytes to give back to the budget of replies.
        """
        self.reserved = reserved
        self.future: asyncio.Future[Any] | None = None
        self._ha = ha
        self._requests = list(requests)
        self._null = null
        self.fetch()

    def fetch(self) -> None:
        """Ask for the results of the remaining requests."""
        assert self._requests and self.future is None
        try:
            keys = [keys for _, keys in self._requests]
            self.future = self._ha.submit_get_each(keys, bytes_max=RUN_BYTES_MAX)
        except RafthaError as error:
            self.future = asyncio.get_running_loop().create_future()
            self.future.set_exception(error)

    def take(self) -> bytes:
        """Return a reply for each request that the fetch decided; `future` is None from then on."""
        future, self.future = self.future, None
        assert future is not None
        error = _error_of(future)
        if error is not None:
            reply = error_reply(error)
            count = len(self._requests)
            self._requests.clear()
            return reply * count
        results = future.result()
        assert 0 < len(results) <= len(self._requests), "a fetch has a result for each request"
        null, replies = self._null, []
        decided, self._requests = self._requests[: len(results)], self._requests[len(results) :]
        for (read, keys), result in zip(decided, results, strict=True):
            if type(result) is list:
                assert len(result) == len(keys), "a read has a value for each key"
                replies.append(encode(read.finish(result), null))
            else:
                replies.append(error_reply(result))
        return b"".join(replies)

    @property
    def is_complete(self) -> bool:
        """True if every request has its reply."""
        return not self._requests


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    if future.cancelled():
        return Disconnected("the server is stopping")
    return future.exception()


def finish_call(null: bytes, receipt: Receipt) -> bytes:
    """Encode the result of a call of `RedisMachine`."""
    return encode(receipt.result, null)


def finish_put(_: Receipt) -> bytes:
    """Encode the reply to SET."""
    return OK


def finish_once(outcome: Outcome, finish: Callable[[Receipt], bytes]) -> bytes:
    """Encode the reply to RAFTHA ONCE, by what `finish` makes of its write's receipt."""
    (receipt,) = receipts(outcome)
    return error_reply(receipt) if isinstance(receipt, CommandFailed) else finish(receipt)
