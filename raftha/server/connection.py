"""One client's connection: requests in, replies out, in order, with a limit on both.

Theory of operation. Requests wait in `_waiting` until `_advance` starts them. Each request then has
a place in `_places`, a queue of encoded replies and of futures that become one. `_flush` writes the
finished replies at the head of the queue. So replies keep the order of requests, whichever finishes
first.

A client sees its own requests as if they ran one by one, with this freedom inside: writes follow
each other without waiting (they are applied in the order of their submission), and neighbouring
reads become one fetch. A read starts when all writes before it are answered, a write when all reads
before it are.

Every request gets exactly one reply, whatever fails (`raftha.server.places`). A client matches
replies by their order, so a connection that can't keep this rule is closed.

Where the node leads and holds a lease, a read of one key is answered at once.

Flow control, each way. The socket is not read while more than WAITING_MAX requests or
WAITING_BYTES_MAX bytes wait or are under way. No request starts while the socket takes no replies,
and a client that takes none for STALLED_S is cut off. One turn reads about RUN_KEYS_MAX keys at
most, unless one request names more, and starts at most WAITING_MAX requests. An EXEC or a SET with
options may have a large reply: it waits while LARGE_REPLIES_MAX replies are outstanding.

A client that has not authenticated is limited more strictly (`raftha.server.access`).

All connections share a budget of bytes for replies (`raftha.server.replies`): a read, and a write
whose reply may be large, waits while it is used up.

There is no task per request: a connection wakes up once, for the future at the head of its queue.
By then its neighbours, released in the same batch, are done too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

from raftha.client.resp import (
    ARGUMENTS_MAX,
    NULL,
    OK,
    REQUEST_BYTES_MAX,
    ProtocolError,
    ReplyError,
    RequestParser,
    encode,
    error_line,
    error_reply,
)
from raftha.errors import RafthaError
from raftha.node.lease_reads import Missed
from raftha.server import access
from raftha.server.access import NOBODY, Token
from raftha.server.commands import (
    SET,
    Command,
    Exec,
    Local,
    Once,
    Read,
    Session,
    Task,
    Write,
    find_command,
    find_open_command,
    keys_of,
    parse_once,
)
from raftha.server.places import (
    RUN_BYTES_MAX,
    Place,
    ReadRun,
    finish_call,
    finish_once,
    finish_put,
)
from raftha.server.tasks import Arguments, Service, administer
from raftha.server.transaction import QueuedCalls, largest_reply
from raftha.storage.state.commands import pack_call

logger = logging.getLogger(__name__)

WAITING_MAX = 1024
WAITING_BYTES_MAX = 1 << 20
RUN_KEYS_MAX = 64
KEY_REPLY_BYTES = RUN_BYTES_MAX // RUN_KEYS_MAX
"""A read by lease with a larger reply counts as several keys."""
READ_RESERVED_MAX = 32 << 20
"""The most bytes that a read reserves of the budget of replies."""
LARGE_REPLIES_MAX = 16
STALLED_S = 30.0
LINGER_S = 2.0
_LARGE = frozenset((Exec, Once))
"""Kinds of commands whose reply may be large, as may that of SET with options."""
_QUEUED = b"+QUEUED\r\n"


class Connection(asyncio.Protocol):
    """One client connection; implements `raftha.server.commands.Client`."""

    def __init__(
        self, service: Service, on_decided: Callable[[Connection], None] | None = None
    ) -> None:
        """`on_decided` is called once the client is known, or needn't be."""
        self.id = service.next_client_id()
        self.name = b""
        self.null = NULL
        self.closed = asyncio.get_running_loop().create_future()
        self.is_ending = False  # No more requests are started; close once all are answered.
        self._service = service
        self._replies = service.replies
        self._on_decided = on_decided
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.is_authenticated = not service.needs_token
        self.token: Token | None = None if service.needs_token else NOBODY
        self._find_command = find_command if self.is_authenticated else find_open_command
        limits = () if self.is_authenticated else access.UNKNOWN_LIMITS
        self.parser = RequestParser(*limits)
        self._unknown_requests = self._auth_failures = 0
        self._auth_pause: asyncio.TimerHandle | None = None  # Not read until then.
        self._made_at = self._loop.time()
        self._unknown: asyncio.TimerHandle | None = None  # Cuts off a client without a token.
        self._waiting: deque[Arguments | ProtocolError | None] = deque()  # None: the end.
        self._waiting_bytes = 0
        self._places: deque[bytes | Place | ReadRun] = deque()
        self._unfinished = 0  # Places that are not bytes.
        self._is_writing = False  # True if the unfinished places are writes.
        self._awaited: asyncio.Future[Any] | None = None
        self._run: list[tuple[Read, list[bytes]]] = []  # Neighbouring reads, for one fetch.
        self._run_keys = 0
        self._run_largest = 0  # Keys of one of its requests, at most.
        self._run_reserved = 0  # Of the budget of replies.
        self._is_awaiting_room = False
        self._queue: QueuedCalls | None = None  # Since MULTI.
        self._is_reading_paused = self._is_writing_paused = self._is_scheduled = False
        self._stalled: asyncio.TimerHandle | None = None
        self._is_faulty = False  # The client has broken the protocol.
        self._lingering: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not registered.
        self._service.clients.add(self)
        if self.is_authenticated:
            self._report_decided()
        else:
            # The time of the TLS handshake counts too: this object is made at accept.
            self._unknown = self._loop.call_at(self._made_at + access.AUTH_TIMEOUT_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self.is_ending or self._is_faulty:
            return
        self._waiting_bytes += len(data)
        try:
            if self.is_authenticated:
                self.parser.feed(data, self._waiting)
            else:
                self.parser.add(data)
                self._take_unknown()
        except ProtocolError as error:
            self._is_faulty = True
            self._waiting.append(error)  # After the replies to what came before it.
        self._advance()

    def _take_unknown(self) -> None:
        """Take requests one by one until the client has authenticated, and the rest from there.

        One by one, since the limits before AUTH don't hold for the requests behind it.
        """
        while not self.is_authenticated:
            if self._auth_pause is not None or self.is_ending:
                return
            if not self.parser.parse_one(self._waiting):
                return
            self._unknown_requests += 1
            if self._unknown_requests > access.UNKNOWN_REQUESTS_MAX:
                self._waiting.pop()
                raise ProtocolError("too many requests before AUTH")
            self._advance()
        rest = self.parser.take_rest()
        if rest:
            self.parser.feed(rest, self._waiting)

    def eof_received(self) -> bool:
        # The client may have shut only its own side: the requests received are still answered.
        if self._lingering is not None:
            return False
        self._waiting.append(None)
        self._advance()
        # TLS ends both directions at once: requests not answered by now can't be.
        return self._transport is not None and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        self._is_writing_paused = True
        assert self._transport is not None
        self._replies.note_unsent(self, self._transport.get_write_buffer_size())
        self._stalled = self._loop.call_later(STALLED_S, self._transport.abort)

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._replies.note_unsent(self, 0)
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.clients.discard(self)
        self.is_ending = True
        self.closed.set_result(None)
        self._transport = None
        for held in (self._waiting, self._run, self.parser):
            held.clear()
        self._give_back()
        for timer in (self._stalled, self._lingering, self._unknown, self._auth_pause):
            if timer is not None:
                timer.cancel()
        for place in self._places:
            if not isinstance(place, bytes) and place.future is not None:
                # The client is gone; retrieving the outcome keeps asyncio from reporting it.
                place.future.add_done_callback(_take_outcome)
        self._places.clear()

    def _give_back(self) -> None:
        """Give everything back to the budget of replies, at the end."""
        reserved = [place.reserved for place in self._places if not isinstance(place, bytes)]
        self._replies.release(self._run_reserved + sum(reserved))
        self._run_reserved = 0
        self._replies.forget(self)

    def on_room(self) -> None:
        self._is_awaiting_room = False
        self._schedule()

    def end(self) -> None:
        """Close once every request that is waiting or under way is answered."""
        self._waiting.append(None)
        self._advance()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def authenticate(self, user: bytes, token: bytes) -> None:
        """Execute AUTH."""
        if not self._service.needs_token:
            raise ReplyError("ERR AUTH <password> called without any password configured.")
        found = self._service.find_token(user, token)
        if found is None:
            self._punish_wrong_token()
            raise ReplyError("WRONGPASS invalid username-password pair or user is disabled.")
        self.token = found
        self.is_authenticated = True
        self._find_command = find_command
        self.parser.request_bytes_max = REQUEST_BYTES_MAX
        self.parser.arguments_max = ARGUMENTS_MAX
        self._report_decided()
        if self._unknown is not None:
            self._unknown.cancel()

    @property
    def host(self) -> str:
        """The client's address, without its port."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return str(peer[0]) if peer else "unknown"

    def _report_decided(self) -> None:
        if self._on_decided is not None:
            self._on_decided(self)
            self._on_decided = None

    def _punish_wrong_token(self) -> None:
        """Read nothing for a while, longer each time; in the end, close the connection."""
        self._auth_failures += 1
        if self._auth_failures >= access.AUTH_FAILURES_MAX:
            self.is_ending = self._is_faulty = True
        elif not self.is_authenticated and self._transport is not None:
            pause_s = access.AUTH_PAUSE_S * 2 ** (self._auth_failures - 1)
            self._auth_pause = self._loop.call_later(pause_s, self._end_auth_pause)
            if not self._is_reading_paused:
                self._transport.pause_reading()

    def _end_auth_pause(self) -> None:
        self._auth_pause = None
        if self._transport is not None and not self._is_reading_paused:
            self._transport.resume_reading()
        self.data_received(b"")

    # ------------------------------------------------------------------ MULTI

    def begin(self) -> bytes:
        """Execute MULTI."""
        if self._queue is not None:
            return error_line("ERR MULTI calls can not be nested")
        self._queue = QueuedCalls()
        return OK

    def discard(self) -> bytes:
        """Execute DISCARD."""
        if self._queue is None:
            raise ReplyError("ERR DISCARD without MULTI")
        self._queue = None
        return OK

    def _enqueue(self, command: Command, request: Arguments) -> None:
        """Queue a command for EXEC, or execute one of the few that are not queued."""
        assert self._queue is not None
        if isinstance(command, Local) and command.in_transaction:
            self._answer(command.run(self, request))
            return
        if not isinstance(command, Write | Read):
            raise ReplyError("ERR Command not allowed inside a transaction")
        self._queue.add(command, request, self._service.value_bytes_max)
        self._answer(_QUEUED)

    def _execute(self) -> None:
        if self._queue is None:
            raise ReplyError("ERR EXEC without MULTI")
        queue, self._queue = self._queue, None
        if queue.is_broken:
            raise ReplyError("EXECABORT Transaction discarded because of previous errors.")
        if queue.calls:
            self._submit(pack_call("exec", queue.calls), partial(finish_call, self.null))
        else:
            self._answer(b"*0\r\n")

    # ------------------------------------------------------------------ from requests to places

    def _advance(self) -> None:
        """Start the requests that may start, write finished replies, and control the flow."""
        try:
            self._take_turn()
        except Exception:
            # A request may be left without its reply, and the replies after it would be misread.
            logger.exception("client connection closed: a request could not be answered")
            self.is_ending = True
            self.abort()

    def _take_turn(self) -> None:
        self._start_waiting()
        self._flush()
        transport = self._transport
        if transport is None:
            return
        if not self._places:
            if self.is_ending:
                self._close(transport)
                return
            if not self._waiting:
                self._waiting_bytes = 0
        is_held_up = self._unfinished or self._is_writing_paused or self._is_awaiting_room
        if self._waiting and not is_held_up:
            # No future will wake this connection up, so it schedules its next turn, which comes
            # after the turns of other connections.
            self._schedule()
        count = len(self._waiting) + len(self._places)
        if self._is_reading_paused:
            if count <= WAITING_MAX // 2 and self._waiting_bytes <= WAITING_BYTES_MAX:
                self._is_reading_paused = False
                transport.resume_reading()
        elif count > WAITING_MAX or self._waiting_bytes > WAITING_BYTES_MAX:
            self._is_reading_paused = True
            transport.pause_reading()

    def _close(self, transport: asyncio.Transport) -> None:
        if not self._is_faulty:
            transport.close()
        elif self._lingering is None:
            # Closing a socket with unread input resets it, and the error reply may be lost. So
            # input is read and dropped until the client closes or time is up.
            if transport.can_write_eof():  # TLS can't end one direction only.
                transport.write_eof()
            self._lingering = self._loop.call_later(LINGER_S, transport.abort)
            if self._is_reading_paused:
                transport.resume_reading()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._is_scheduled = False
        self._advance()

    def _start_waiting(self) -> None:
        waiting, places = self._waiting, self._places
        self._run_keys = 0
        while waiting and not self._is_writing_paused and len(places) < WAITING_MAX:
            request = waiting[0]
            if not isinstance(request, list):
                if request is not None:
                    self._answer(error_reply(request))
                self.is_ending = True
            else:
                try:
                    command = self._find_command(request)
                    if isinstance(command, Read):
                        is_started = self._start_read(command, request)
                    else:
                        is_started = self._start(command, request)
                    if not is_started:
                        break
                except RafthaError as error:
                    if self._queue is not None and self._queue.refuse():
                        self.is_ending = self._is_faulty = True
                    self._answer(error_reply(error))
            if self.is_ending:
                waiting.clear()
            else:
                waiting.popleft()
        if self._run:
            self._start_run()

    def _start(self, command: Command, request: Arguments) -> bool:
        """Give the request its place; False if it has to wait for earlier requests."""
        if self._queue is not None and not isinstance(command, Exec):
            self._enqueue(command, request)
            return True
        if isinstance(command, Local):
            if self._run:  # HELLO changes the encoding of later replies.
                self._start_run()
            self._answer(command.run(self, request))
            return True
        is_after_writes = self._is_writing and not isinstance(command, Task)
        if self._run or (self._unfinished and not is_after_writes):
            return False
        if command is SET or type(command) in _LARGE:
            return self._start_large(command, request)
        if type(command) is Task and self._replies.is_full:
            return self._await_room()
        self._carry_out(command, request)
        return True

    def _start_read(self, command: Read, request: Arguments) -> bool:
        """As `_start`, for a read: the commonest request."""
        if self._queue is not None:
            self._enqueue(command, request)
            return True
        if self._unfinished or self._run_keys >= RUN_KEYS_MAX:
            return False
        if self._replies.used_bytes >= self._replies.bytes_max:
            return self._await_room()
        keys = keys_of(request)
        count = len(keys)
        self._run_keys += count
        if count > 1 or self._run or not self._answer_by_lease(command, keys[0]):
            if count > self._run_largest and not self._reserve_for(count):
                return self._await_room()
            self._run.append((command, keys))
        return True

    def _reserve_for(self, count: int) -> bool:
        """Reserve what a run needs if its largest request has `count` keys; False if it can't."""
        size = RUN_BYTES_MAX + min(count * self._service.value_bytes_max, READ_RESERVED_MAX)
        # As `reserve`, without a call for each read.
        replies = self._replies
        used = replies.used_bytes + size - self._run_reserved
        if used > replies.bytes_max and replies.used_bytes:
            return False
        replies.used_bytes = used
        self._run_largest, self._run_reserved = count, size
        return True

    def _await_room(self) -> bool:
        self._is_awaiting_room = True
        self._replies.wait(self)
        return False

    def _start_large(self, command: Command, request: Arguments) -> bool:
        """As `_start`, for a write whose reply may be large: its bytes are reserved until then."""
        size = largest_reply(command, request, self._queue, self._service.value_bytes_max)
        if (size or not isinstance(command, Once)) and self._unfinished >= LARGE_REPLIES_MAX:
            return False
        if size and not self._replies.reserve(size):
            return self._await_room()
        count = len(self._places)
        try:
            self._carry_out(command, request)
        finally:
            place = self._places[-1] if len(self._places) > count else None
            if isinstance(place, Place):
                place.reserved = size
            else:  # It was refused.
                self._replies.release(size)
        return True

    def _carry_out(self, command: Command, request: Arguments) -> None:
        if isinstance(command, Write):
            packed = command.pack(request, self._service.value_bytes_max)
            self._submit(packed, finish_put if command.is_put else partial(finish_call, self.null))
        elif isinstance(command, Exec):
            self._execute()
        elif isinstance(command, Once):
            self._submit_once(request)
        elif isinstance(command, Session):
            self._start_task(self._service.ha.open_session(f"{self.host} {self.id}"))
        elif isinstance(command, Task) and command.is_admin:
            self._start_task(administer(self._service, command.run, request, self))
        elif isinstance(command, Task):
            self._start_task(command.run(self._service, request))

    def _answer_by_lease(self, command: Read, key: bytes) -> bool:
        """Answer a read of one key at once, if the node leads and holds a lease."""
        value = self._service.ha.get_by_lease(key)
        if isinstance(value, Missed):
            return False
        reply = encode(command.finish([value]), self.null)
        # A turn is over sooner where values are large.
        self._run_keys += len(reply) // KEY_REPLY_BYTES
        self._answer(reply)
        return True

    def _answer(self, reply: bytes) -> None:
        if self._run:
            self._start_run()
        self._places.append(reply)

    def _submit(self, packed: bytes, finish: Callable[[Any], bytes]) -> None:
        self._add_place(Place(self._service.ha.submit(packed), finish), is_writing=True)

    def _submit_once(self, request: Arguments) -> None:
        session, number, floor, command, inner = parse_once(request)
        packed = command.pack(inner, self._service.value_bytes_max)
        future = self._service.ha.submit_once(session, number, floor, [packed])
        finish = finish_put if command.is_put else partial(finish_call, self.null)
        place = Place(future, lambda outcome: finish_once(outcome, finish))
        self._add_place(place, is_writing=True)

    def _start_run(self) -> None:
        run, self._run = self._run, []
        reserved, self._run_reserved, self._run_largest = self._run_reserved, 0, 0
        self._add_place(ReadRun(self._service.ha, run, self.null, reserved), is_writing=False)

    def _start_task(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(coroutine)
        self._add_place(Place(task, partial(encode, null=self.null)), is_writing=False)

    def _add_place(self, place: Place | ReadRun, *, is_writing: bool) -> None:
        self._places.append(place)
        self._unfinished += 1
        self._is_writing = is_writing

    # ------------------------------------------------------------------ from places to replies

    def _flush(self) -> None:
        places = self._places
        replies: list[bytes] = []
        while places:
            place = places[0]
            if isinstance(place, bytes):
                replies.append(place)
                places.popleft()
                continue
            if place.future is None:
                # The rest of a run is large: fetch it once the client has taken the first part.
                self._write(replies)
                if self._is_writing_paused:
                    break
                assert isinstance(place, ReadRun)
                place.fetch()
            future = place.future
            assert future is not None
            if not future.done():
                if self._awaited is not future:
                    self._awaited = future
                    future.add_done_callback(self._on_done)
                break
            replies.append(place.take())
            if place.is_complete:
                self._unfinished -= 1
                places.popleft()
                if place.reserved:
                    self._replies.used_bytes -= place.reserved
                    if self._replies.waiting:
                        self._replies.wake()
        self._write(replies)

    def _write(self, replies: list[bytes]) -> None:
        if replies and self._transport is not None:
            self._transport.write(b"".join(replies))
            replies.clear()
            if self._is_writing_paused:
                self._replies.note_unsent(self, self._transport.get_write_buffer_size())

    def _on_done(self, _: asyncio.Future[Any]) -> None:
        self._awaited = None
        self._advance()


def _take_outcome(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
