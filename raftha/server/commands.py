"""The commands of the reference server: their names, their arguments, and how each is executed.

Theory of operation. `find_command` checks the name of a request and the number of its arguments,
and returns a command of one of seven kinds. The kind tells a connection
(`raftha.server.connection`) how to order the request with others:

    Write   a call of `RedisMachine`, through the log
    Exec    EXEC: all calls queued since MULTI, as one Write
    Once    RAFTHA ONCE: a Write in an envelope that makes it safe to retry through any node
    Session RAFTHA SESSION: opens a session for Once, in the client's name
    Read    keys to fetch, and a function of their values; neighbouring reads become one fetch
    Task    a coroutine: it waits for all requests before it, and all after it wait for it
    Local   answered at once from the state of the connection

Error texts are those of Redis wherever Redis has the same error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from raftha.client.resp import NULL_3, OK, ReplyError, encode
from raftha.errors import InvalidRequest
from raftha.server import backups, recoveries, tasks
from raftha.server.machine import INT64_MIN, parse_int64
from raftha.server.tasks import SYNTAX_ERROR, Arguments
from raftha.storage.state.commands import check_key, check_value, pack_call, pack_put
from raftha.version import VERSION

Call: TypeAlias = tuple[Any, ...]
"""A command of `RedisMachine`: its name, followed by its arguments."""

WRITE_KEYS_MAX = 10_000
"""The most keys that one write may name."""
READ_KEYS_MAX = 1_000
"""The most keys that one read may name. It bounds the data that a single request can collect."""

HELLO_ARGUMENTS_MAX = len(("HELLO", "version", "AUTH", "user", "token", "SETNAME", "name"))

HELP = """RAFTHA STATUS -- this node's state, as JSON
RAFTHA EVENTS journal number wait_ms -- events after that one, waited for up to 60 s, as JSON
RAFTHA DIGEST [sequence] -- hash over the whole contents at a sequence, as JSON
RAFTHA FAILOVER node_id -- make a node the leader
RAFTHA ADD node_id address [region] -- add a node that runs and waits; OK once it is a voter
RAFTHA ADD node_id address region STANDBY -- add it as a learner that stays one; OK once it is that
RAFTHA PROMOTE node_id -- make a standby a voter; OK once it has caught up and is one
RAFTHA PROMOTE REGION name -- make all learners of a region voters, in turn; their ids
RAFTHA MOVE node_id ADDRESS host:port [REGION name] -- where the others dial a member; its region
RAFTHA REMOVE node_id -- remove a node for good; OK once that is so
RAFTHA BACKUPS -- the cluster's backups, and why each is kept, as JSON
RAFTHA BACKUP RUN [mode|-] [WAIT seconds] -- begin a backup, or have one taken; its id
RAFTHA BACKUP VERIFY id [level] -- read a backup back from each destination, as JSON
RAFTHA BACKUP EXPIRE -- delete the backups that no rule keeps; why each is kept, as JSON
RAFTHA BACKUP PIN id name [until_us] -- keep a backup
RAFTHA BACKUP UNPIN id [name] -- take away a pin of a backup, or all
RAFTHA BACKUP CHECK -- try what each destination really does, as JSON
RAFTHA PITR -- the moments that the log knows, and the recoveries, as JSON
RAFTHA RECOVER MARK name -- give this moment a name, as JSON
RAFTHA RECOVER CHECKPOINT [seconds] -- have the states compared, and note a point, as JSON
RAFTHA RECOVER WINDOW -- the moments that can be restored, as JSON
RAFTHA RECOVER PLAN TIME us|SEQUENCE n|MARK name -- what a recovery would read, as JSON
RAFTHA RECOVER TO TIME us|SEQUENCE n|MARK name [SWITCH|NOW [seconds]] -- take the cluster back
RAFTHA RECOVER UNDO [SWITCH|NOW [seconds]] -- take back the last recovery
RAFTHA RECOVER ABORT -- give up the recovery that the members prepare
RAFTHA RECOVER DRILL [TIME us|SEQUENCE n|MARK name] -- restore a moment for proof, as JSON
RAFTHA SESSION -- open a session for ONCE; its id
RAFTHA ONCE session number floor command [argument ...] -- apply a write once, however often sent
RAFTHA HELP -- this""".splitlines()


class Client(Protocol):
    """The part of a connection that commands may read and change."""

    id: int
    name: bytes
    null: bytes
    is_ending: bool
    is_authenticated: bool

    def authenticate(self, user: bytes, token: bytes) -> None:
        """Accept the client; ReplyError if the user or the token is wrong."""
        ...

    def begin(self) -> bytes:
        """Execute MULTI."""
        ...

    def discard(self) -> bytes:
        """Execute DISCARD."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """A command that goes through the log. `parse` takes a request and the size limit of a value.

    A plain put (`is_put`) is packed without a call, because it is by far the most common write.
    """

    parse: Callable[[Arguments, int], Call]
    is_put: bool = False

    def pack(self, request: Arguments, value_bytes_max: int) -> bytes:
        """Pack the request into the form that the log takes."""
        if self.is_put:
            return pack_put(request[1], request[2], value_bytes_max)
        name, *arguments = self.parse(request, value_bytes_max)
        return pack_call(name, arguments)

    def finish(self, result: Any) -> Any:
        """Convert the result of the command into the reply."""
        return "OK" if self.is_put else result


@dataclass(frozen=True, slots=True, eq=False)
class Exec:
    """EXEC."""


@dataclass(frozen=True, slots=True, eq=False)
class Once:
    """RAFTHA ONCE."""


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """RAFTHA SESSION."""


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A command that names keys; `finish` converts their values into the reply."""

    name: str
    finish: Callable[[Sequence[bytes | None]], Any]

    def parse(self, request: Arguments, value_bytes_max: int) -> Call:
        """Convert the read into a call of `RedisMachine`, for a transaction."""
        return (self.name, *keys_of(request))


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A command that may wait; its coroutine returns the reply.

    `is_admin`: it changes or burdens the cluster itself, and needs a token with the role admin.
    """

    run: tasks.Run
    is_admin: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Local:
    """A command that is answered at once, with an encoded reply.

    `in_transaction`: it runs at once after MULTI too, instead of being queued.
    """

    run: Callable[[Client, Arguments], bytes]
    in_transaction: bool = False


Command: TypeAlias = Write | Exec | Once | Session | Read | Task | Local


def find_command(request: Arguments) -> Command:
    """Return the command of a request; ReplyError if the name or the argument count is wrong."""
    name = request[0]
    entry = _TABLE.get(name) or _TABLE.get(name.upper())
    if isinstance(entry, dict):
        if len(request) < 2:
            raise wrong_number(name)
        subcommand = request[1]
        entry = entry.get(subcommand.upper())
        if entry is None:
            raise ReplyError(
                f"ERR unknown or unsupported subcommand '{_shown(subcommand)}' of '{_shown(name)}'"
            )
        name = name + b"|" + subcommand
    if entry is None:
        raise ReplyError(f"ERR unknown or unsupported command '{_shown(name)}'")
    command, low, high = entry
    if not low <= len(request) <= high:
        raise wrong_number(name)
    if command is SET and len(request) == 3:
        return PUT
    return command


def find_open_command(request: Arguments) -> Command:
    """Like `find_command`, for a client that has not authenticated; ReplyError if it has to."""
    if request[0].upper() not in _OPEN:
        raise ReplyError("NOAUTH Authentication required.")
    return find_command(request)


def wrong_number(name: bytes) -> ReplyError:
    """Return the error for too few or too many arguments."""
    return ReplyError(f"ERR wrong number of arguments for '{_shown(name.lower())}' command")


def keys_of(request: Arguments, keys_max: int = READ_KEYS_MAX) -> list[bytes]:
    """Return the keys that follow the command's name; InvalidRequest if one is bad, or too many."""
    keys = request[1:]
    if len(keys) > keys_max:
        raise InvalidRequest(f"this command may name at most {keys_max} keys, got {len(keys)}")
    for key in keys:
        check_key(key)
    return keys


def count_keys(request: Arguments) -> int:
    """The number of keys that a read or write names."""
    name = request[0].upper()
    if name == b"MSET":
        return len(request) // 2
    return len(request) - 1 if name in {b"DEL", b"EXISTS", b"MGET"} else 1


def _shown(name: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:128].decode("latin-1"))


# -------------------------------------------------------------------------- writes


def _parse_set(request: Arguments, value_bytes_max: int) -> Call:
    _, key, value, *options = request
    check_key(key)
    check_value(value, value_bytes_max)
    condition, returns_old = "", False
    for option in map(bytes.upper, options):
        if option == b"GET":
            returns_old = True
        elif option in {b"NX", b"XX"} and condition in {"", option.decode()}:
            condition = option.decode()
        elif option in {b"EX", b"PX", b"EXAT", b"PXAT", b"KEEPTTL"}:
            raise ReplyError(
                f"ERR option {option.decode()} of SET is not supported: keys don't expire"
            )
        else:
            raise ReplyError(SYNTAX_ERROR)
    return ("set", key, value, condition, returns_old)


def _parse_mset(request: Arguments, value_bytes_max: int) -> Call:
    if len(request) % 2 == 0:
        raise wrong_number(request[0])
    keys_of([request[0], *request[1::2]], WRITE_KEYS_MAX)
    for value in request[2::2]:
        check_value(value, value_bytes_max)
    return ("mset", *request[1:])


def _parse_delete(request: Arguments, _: int) -> Call:
    return ("delete", *keys_of(request, WRITE_KEYS_MAX))


def _parse_increment(sign: int) -> Callable[[Arguments, int], Call]:
    def parse(request: Arguments, _: int) -> Call:
        check_key(request[1])
        amount = parse_int64(request[2]) if len(request) == 3 else 1
        if sign < 0 and amount == INT64_MIN:
            raise ReplyError("ERR decrement would overflow")
        return ("incrby", request[1], sign * amount)

    return parse


def parse_once(request: Arguments) -> tuple[int, int, int, Write, Arguments]:
    """Split RAFTHA ONCE into session, number, floor, and the write with its arguments."""
    session, number, floor = (parse_int64(argument) for argument in request[2:5])
    if session < 1 or not 1 <= floor <= number:
        raise ReplyError("ERR ONCE takes a session's id, and numbers with 1 <= floor <= number")
    inner = request[5:]
    command = find_command(inner)
    if not isinstance(command, Write):
        raise ReplyError("ERR ONCE takes a write: SET, MSET, DEL, INCR, DECR, INCRBY or DECRBY")
    return session, number, floor, command, inner


# -------------------------------------------------------------------------- reads


def _first(values: Sequence[bytes | None]) -> bytes | None:
    return values[0]


def _count(values: Sequence[bytes | None]) -> int:
    return sum(value is not None for value in values)


# -------------------------------------------------------------------------- local commands


def _ping(_: Client, request: Arguments) -> bytes:
    return encode(request[1]) if len(request) == 2 else b"+PONG\r\n"


def _select(_: Client, request: Arguments) -> bytes:
    if parse_int64(request[1]) != 0:
        raise ReplyError("ERR DB index is out of range")
    return OK


def _quit(client: Client, _: Arguments) -> bytes:
    client.is_ending = True
    return OK


def _auth(client: Client, request: Arguments) -> bytes:
    user = request[1] if len(request) == 3 else b"default"
    client.authenticate(user, request[-1])
    return OK


def _hello(client: Client, request: Arguments) -> bytes:
    version = 3 if client.null == NULL_3 else 2
    if len(request) > 1:
        version = {b"2": 2, b"3": 3}.get(request[1], 0)
        if not version:
            raise ReplyError("NOPROTO unsupported protocol version")
    name, options = client.name, request[2:]
    seen: set[bytes] = set()
    while options:
        option = options[0].upper()
        match [b"" if option in seen else option, *options[1:]]:
            case [b"SETNAME", given, *options]:
                name = _checked_name(given)
            case [b"AUTH", user, token, *options]:
                client.authenticate(user, token)
            case _:
                raise ReplyError("ERR HELLO takes a version, AUTH user token, and SETNAME name")
        seen.add(option)
    if not client.is_authenticated:
        raise ReplyError("NOAUTH HELLO must be called with AUTH default <token>, or after AUTH")
    client.name = name
    client.null = NULL_3 if version == 3 else encode(None)
    fields = {
        b"server": b"raftha", b"version": VERSION.encode(), b"proto": version, b"id": client.id,
        b"mode": b"standalone", b"role": b"master", b"modules": [],
    }  # fmt: skip
    return _map(client, fields)


def _client_setname(client: Client, request: Arguments) -> bytes:
    client.name = _checked_name(request[2])
    return OK


def _checked_name(name: bytes) -> bytes:
    if len(name) > 256 or any(not 33 <= byte <= 126 for byte in name):
        raise ReplyError("ERR Client names cannot contain spaces, newlines or special characters.")
    return name


def _config_get(client: Client, request: Arguments) -> bytes:
    # Tools read these two to learn how durable the server is; the server has no such settings.
    known = {b"save": b"", b"appendonly": b"yes"}
    return _map(client, {name: known[name] for name in request[2:] if name in known})


def _map(client: Client, fields: Mapping[bytes, Any]) -> bytes:
    """Encode a map; RESP2 has none, so it gets a flat list of names and values."""
    header = b"%%%d\r\n" % len(fields) if client.null == NULL_3 else b"*%d\r\n" % (2 * len(fields))
    return header + b"".join(encode(item) for field in fields.items() for item in field)


# -------------------------------------------------------------------------- the table

_MANY = 1 << 31
SET = Write(_parse_set)
PUT = Write(_parse_set, is_put=True)
"""SET without options."""

_Entry: TypeAlias = tuple[Command, int, int]
"""A command, and its least and greatest number of arguments, the name included."""

_COMMANDS: dict[str, _Entry | dict[bytes, _Entry]] = {
    "GET": (Read("get", _first), 2, 2),
    "SET": (SET, 3, _MANY),
    "DEL": (Write(_parse_delete), 2, _MANY),
    "EXISTS": (Read("exists", _count), 2, _MANY),
    "MGET": (Read("mget", list), 2, _MANY),
    "MSET": (Write(_parse_mset), 3, _MANY),
    "INCR": (Write(_parse_increment(1)), 2, 2),
    "DECR": (Write(_parse_increment(-1)), 2, 2),
    "INCRBY": (Write(_parse_increment(1)), 3, 3),
    "DECRBY": (Write(_parse_increment(-1)), 3, 3),
    "SCAN": (Task(tasks.scan), 2, _MANY),
    "DBSIZE": (Task(tasks.dbsize), 1, 1),
    "INFO": (Task(tasks.info), 1, 16),
    "MULTI": (Local(lambda client, _: client.begin(), in_transaction=True), 1, 1),
    "DISCARD": (Local(lambda client, _: client.discard(), in_transaction=True), 1, 1),
    "EXEC": (Exec(), 1, 1),
    "AUTH": (Local(_auth), 2, 3),
    "PING": (Local(_ping), 1, 2),
    "ECHO": (Local(lambda _, request: encode(request[1])), 2, 2),
    "SELECT": (Local(_select), 2, 2),
    "QUIT": (Local(_quit, in_transaction=True), 1, _MANY),
    "HELLO": (Local(_hello), 1, HELLO_ARGUMENTS_MAX),
    "COMMAND": (Local(lambda _client, _request: b"*0\r\n"), 1, _MANY),
    "CONFIG": {b"GET": (Local(_config_get), 3, _MANY)},
    "CLIENT": {
        b"SETINFO": (Local(lambda _client, _request: OK), 4, 4),
        b"SETNAME": (Local(_client_setname), 3, 3),
        b"GETNAME": (Local(lambda client, _: encode(client.name or None, client.null)), 2, 2),
        b"ID": (Local(lambda client, _: encode(client.id)), 2, 2),
    },
    "RAFTHA": {
        b"STATUS": (Task(tasks.status), 2, 2),
        b"EVENTS": (Task(tasks.events), 5, 5),
        b"DIGEST": (Task(tasks.digest, is_admin=True), 2, 3),
        b"FAILOVER": (Task(tasks.failover, is_admin=True), 3, 3),
        b"ADD": (Task(tasks.add_replica, is_admin=True), 4, 6),
        b"PROMOTE": (Task(tasks.promote, is_admin=True), 3, 4),
        b"MOVE": (Task(tasks.move_replica, is_admin=True), 5, 7),
        b"REMOVE": (Task(tasks.remove_replica, is_admin=True), 3, 3),
        b"BACKUPS": (Task(backups.backups), 2, 2),
        b"BACKUP": (Task(backups.backup, is_admin=True), 3, 6),
        b"PITR": (Task(recoveries.pitr), 2, 2),
        b"RECOVER": (Task(recoveries.recover, is_admin=True), 3, 7),
        b"SESSION": (Session(), 2, 2),
        b"ONCE": (Once(), 6, _MANY),
        b"HELP": (Local(lambda _client, _request: encode(HELP)), 2, 2),
    },
}
_OPEN = {b"AUTH", b"HELLO", b"PING", b"QUIT"}
# Clients nearly always send names in upper or lower case; a mixture is looked up in upper case.
_TABLE = {
    spelling: entry
    for name, entry in _COMMANDS.items()
    for spelling in (name.encode(), name.lower().encode())
}
