"""The commands that may wait: scans, counts, statuses, digests, failover, membership changes.

Each is a coroutine that takes the service and the request, and returns a reply for
`raftha.client.resp.encode`. All connections of a server share one `Service`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeAlias

from raftha.aio import HaManager
from raftha.client.resp import ReplyError
from raftha.errors import Indeterminate, InvalidRequest, Unavailable
from raftha.net.refusals import Refusals
from raftha.server.access import DEFAULT, Role, Token, Tokens
from raftha.server.glob import Glob
from raftha.server.journal import Journal
from raftha.server.machine import parse_int64
from raftha.server.replies import ReplyBudget
from raftha.types import HaStatus
from raftha.version import VERSION

logger = logging.getLogger(__name__)

Arguments: TypeAlias = list[bytes]
"""A request: the command's name, followed by its arguments."""

SYNTAX_ERROR = "ERR syntax error"
SCAN_COUNT_MAX = 1_000
"""The most keys that one SCAN reads, whatever COUNT the client sends."""
MATCHED_AT_ONCE = 32
"""Keys that SCAN compares with a pattern before other clients get their turn."""
CHANGE_S = 300.0
"""How long a membership change may take: a new node has to receive all the data first."""
_PLACES = {b"ADDRESS": "address", b"REGION": "region"}
"""The parts of a member's place, by their names in a request."""
EVENTS_WAIT_MS_MAX = 60_000
LOGGED_MAX = 500
"""Characters of an administrative command in the log."""
CURSORS_MAX = 4_096
"""The most scans under way at once; beyond it, the least recently continued one is dropped."""


class Service:
    """The state that all connections of a server share."""

    def __init__(
        self, ha: HaManager, *, value_bytes_max: int, tokens: Tokens | None = None
    ) -> None:
        """`tokens`: those that clients must send one of; none if they need none."""
        self.ha = ha
        self.journal = Journal(ha)
        self.tokens = tokens or Tokens()
        self.needs_token = bool(self.tokens)
        self.wrong_tokens = 0
        self.refusals = Refusals(logger, "client refused")
        self.value_bytes_max = value_bytes_max
        self.clients: set[Any] = set()
        self.replies = ReplyBudget()
        self._client_id = 0
        self._started = time.monotonic()
        # Cursors of another node, or of an earlier run, must not be mistaken for this run's.
        self._cursor = random.getrandbits(48)
        self._last_keys: OrderedDict[int, bytes] = OrderedDict()

    def next_client_id(self) -> int:
        """Return the id of a new connection."""
        self._client_id += 1
        return self._client_id

    def find_token(self, user: bytes, given: bytes) -> Token | None:
        """Return the token with this secret, if `user` is its name, or the default user."""
        token = self.tokens.find(given)
        if token is not None and user.decode(errors="replace") in (DEFAULT, token.name):
            return token
        self.wrong_tokens += 1
        if self.wrong_tokens.bit_count() == 1:  # The 1st, 2nd, 4th, 8th ...
            logger.warning("a client sent a wrong token total=%d", self.wrong_tokens)
        return None

    def renew(self, tokens: Tokens) -> None:
        """Accept these tokens from now on, and disconnect the clients of any other."""
        self.tokens = tokens
        for client in [c for c in self.clients if c.token is not None and c.token not in tokens]:
            client.abort()

    def remember(self, last_key: bytes) -> int:
        """Return a cursor for continuing after `last_key`."""
        self._cursor += 1
        self._last_keys[self._cursor] = last_key
        if len(self._last_keys) > CURSORS_MAX:
            self._last_keys.popitem(last=False)
        return self._cursor

    def recall(self, cursor: int) -> bytes:
        """Return the key of `cursor`, which stays valid: a client may retry."""
        key = self._last_keys.get(cursor)
        if key is None:
            raise ReplyError("ERR this node does not have the cursor any more; begin again at 0")
        self._last_keys.move_to_end(cursor)
        return key

    @property
    def uptime_s(self) -> int:
        """Seconds since the server started."""
        return int(time.monotonic() - self._started)


Run: TypeAlias = Callable[[Service, Arguments], Coroutine[Any, Any, Any]]


class Administrator(Protocol):
    """A client that sends an administrative command."""

    token: Token | None

    @property
    def host(self) -> str: ...


def administer(
    service: Service, run: Run, request: Arguments, client: Administrator
) -> Coroutine[Any, Any, Any]:
    """Carry out an administrative command. ReplyError if the client's role is another."""
    if client.token is None or client.token.role is not Role.ADMIN:
        raise ReplyError("NOPERM this command needs a token with the role admin")
    who = f"client={client.host} token={client.token.name or 'none'}"
    return _administer(run(service, request), request, who)


async def _administer(run: Coroutine[Any, Any, Any], request: Arguments, who: str) -> Any:
    """Carry out an administrative command; log it, whose it is, and how it ended."""
    # Arguments are written as Python would: control characters never reach a log or a terminal.
    words = " ".join(ascii(word.decode(errors="replace"))[1:-1] for word in request)[:LOGGED_MAX]
    logger.info("admin command=%r %s", words, who)
    try:
        reply = await run
    except Exception as error:
        logger.info("admin failed command=%r %s error=%r", words, who, str(error))
        raise
    logger.info("admin done command=%r %s", words, who)
    return reply


async def scan(service: Service, request: Arguments) -> list[Any]:
    cursor = _parse_cursor(request[1])
    pattern, limit = None, 10
    options = [argument.upper() for argument in request[2::2]]
    if len(request) % 2:
        raise ReplyError(SYNTAX_ERROR)
    for option, argument in zip(options, request[3::2], strict=True):
        if option == b"MATCH":
            pattern = Glob(argument) if argument != b"*" else None
        elif option == b"COUNT":
            limit = min(parse_int64(argument), SCAN_COUNT_MAX)
        else:
            raise ReplyError(SYNTAX_ERROR)
    if limit < 1:
        raise ReplyError(SYNTAX_ERROR)
    # The range includes its start; a zero byte appended gives the smallest key after the last one.
    start = service.recall(cursor) + b"\0" if cursor else None
    keys, is_last = await _scan_keys(service, start, limit)
    next_cursor = 0 if is_last else service.remember(keys[-1])
    if pattern is not None:
        keys = await _filter_keys(pattern, keys)
    return [b"%d" % next_cursor, keys]


async def _scan_keys(service: Service, start: bytes | None, limit: int) -> tuple[list[bytes], bool]:
    """Return up to `limit` keys, fewer if their values are large, and True if they are the last."""
    while True:
        try:
            pairs = await service.ha.scan(start, limit=limit)
        except InvalidRequest:
            if limit == 1:
                raise
            limit = (limit + 3) // 4
        else:
            return [key for key, _ in pairs], len(pairs) < limit


async def _filter_keys(pattern: Glob, keys: list[bytes]) -> list[bytes]:
    """Return the keys that `pattern` matches; other clients get their turns meanwhile."""
    found: list[bytes] = []
    for start in range(0, len(keys), MATCHED_AT_ONCE):
        found += [key for key in keys[start : start + MATCHED_AT_ONCE] if pattern.matches(key)]
        await asyncio.sleep(0)
    return found


def _parse_cursor(text: bytes) -> int:
    try:
        return parse_int64(text)
    except ReplyError:
        raise ReplyError("ERR invalid cursor") from None


async def dbsize(service: Service, _: Arguments) -> int:
    return await service.ha.count()


async def info(service: Service, request: Arguments) -> bytes:
    wanted = {section.lower() for section in request[1:]} or {b"default"}
    status = await service.ha.get_status()
    sections = {
        b"server": _server_section(service, status),
        b"clients": [
            f"connected_clients:{len(service.clients)}",
            f"refused_connections:{service.refusals.total}",
            f"wrong_tokens:{service.wrong_tokens}",
        ],
        b"replication": _replication_section(status),
    }
    if wanted & {b"keyspace", b"default", b"all", b"everything"}:
        sections[b"keyspace"] = [f"db0:keys={await service.ha.count()},expires=0,avg_ttl=0"]
    parts = [
        f"# {name.decode().capitalize()}\r\n" + "".join(f"{line}\r\n" for line in lines)
        for name, lines in sections.items()
        if wanted & {name, b"default", b"all", b"everything"}
    ]
    return "\r\n".join(parts).encode()


def _server_section(service: Service, status: HaStatus) -> list[str]:
    return [
        f"raftha_version:{VERSION}",
        # Clients read this version to learn which commands they may send.
        "redis_version:6.2.0",
        "redis_mode:standalone",
        f"process_id:{os.getpid()}",
        f"uptime_in_seconds:{service.uptime_s}",
        f"cluster_id:{status.cluster_id}",
        f"node_id:{status.node_id}",
    ]


def _replication_section(status: HaStatus) -> list[str]:
    replicas = [
        f"member{i}:id={r.node_id},address={r.address},connected={int(r.connected)}"
        for i, r in enumerate(status.replicas)
    ]
    return [
        # Any node takes any command, so Redis's clients may treat each as a master.
        "role:master",
        f"raft_role:{status.role}",
        f"raft_term:{status.term}",
        f"raft_leader_id:{status.leader_id or 0}",
        f"raft_last_index:{status.last_index}",
        f"raft_commit_index:{status.commit_index}",
        f"raft_applied_index:{status.applied_index}",
        f"sequence:{status.sequence}",
        *replicas,
    ]


async def status(service: Service, _: Arguments) -> bytes:
    return json.dumps(dataclasses.asdict(await service.ha.get_status())).encode()


async def events(service: Service, request: Arguments) -> bytes:
    journal = request[2].decode(errors="replace")
    number, wait_ms = parse_int64(request[3]), parse_int64(request[4])
    if number < 0 or not 0 <= wait_ms <= EVENTS_WAIT_MS_MAX:
        raise ReplyError(f"ERR a number is 0 or more, a wait from 0 to {EVENTS_WAIT_MS_MAX}")
    return json.dumps(await service.journal.after(journal, number, wait_ms / 1000)).encode()


async def digest(service: Service, request: Arguments) -> bytes:
    sequence = parse_int64(request[2]) if len(request) == 3 else 0
    if sequence < 0:
        raise ReplyError("ERR a sequence is 0 or more")
    digest = await service.ha.digest(sequence)
    return json.dumps(dataclasses.asdict(digest)).encode()


async def failover(service: Service, request: Arguments) -> str:
    await service.ha.failover_to(parse_int64(request[2]))
    return "OK"


async def _need_majority(service: Service) -> None:
    """Raise Unavailable early if there is no majority: the change itself may take `CHANGE_S`."""
    try:
        await service.ha.get(b"any")
    except (Unavailable, Indeterminate) as error:
        raise Unavailable(f"nothing was changed: {error}") from error


async def add_replica(service: Service, request: Arguments) -> str:
    address = request[3].decode(errors="replace")
    region = request[4].decode(errors="replace") if len(request) > 4 else ""
    # STANDBY is an option only after a region, since a region may have any name, STANDBY too.
    if len(request) > 5 and request[5].upper() != b"STANDBY":
        raise ReplyError(SYNTAX_ERROR)
    node_id, is_voter = parse_int64(request[2]), len(request) < 6
    await _need_majority(service)
    await service.ha.add_replica(node_id, address, region=region, voter=is_voter, timeout=CHANGE_S)
    return "OK"


async def move_replica(service: Service, request: Arguments) -> str:
    names = [name.upper() for name in request[3::2]]
    if len(request) % 2 == 0 or len(set(names)) < len(names) or not {*names} <= _PLACES.keys():
        raise ReplyError(SYNTAX_ERROR)
    values = [value.decode(errors="replace") for value in request[4::2]]
    place = {_PLACES[name]: value for name, value in zip(names, values, strict=True)}
    node_id = parse_int64(request[2])
    await _need_majority(service)
    await service.ha.move_replica(node_id, **place, timeout=CHANGE_S)
    return "OK"


async def promote(service: Service, request: Arguments) -> str | list[int]:
    if len(request) == 3:
        node_id = parse_int64(request[2])
        await _need_majority(service)
        await service.ha.promote_replica(node_id, timeout=CHANGE_S)
        return "OK"
    if request[2].upper() != b"REGION":
        raise ReplyError(SYNTAX_ERROR)
    await _need_majority(service)
    region = request[3].decode(errors="replace")
    return list(await service.ha.promote_region(region, timeout=CHANGE_S))


async def remove_replica(service: Service, request: Arguments) -> str:
    node_id = parse_int64(request[2])
    await _need_majority(service)
    await service.ha.remove_replica(node_id, timeout=CHANGE_S)
    return "OK"


Action: TypeAlias = tuple[Callable[..., Coroutine[Any, Any, Any]], int, int]
"""What runs one, and how many arguments it has at least and at most."""


async def act(actions: Mapping[bytes, Action], service: Service, request: Arguments) -> Any:
    """Run `RAFTHA noun action ...`; ReplyError if there is no such action."""
    action = actions.get(request[2].upper())
    if action is None:
        raise ReplyError(SYNTAX_ERROR)
    run, low, high = action
    if not low <= len(request) - 3 <= high:
        raise ReplyError(SYNTAX_ERROR)
    return await run(service, *request[3:])
