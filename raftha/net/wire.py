"""The codec of the messages between peers: a length, then a msgpack array, nothing executable.

Theory of operation. A frame is a little-endian u32 length and a msgpack array `[code, field, ...]`.
The codes are those of `_CODES`, and the fields those of the message's class, in order. An entry
travels as the bytes that the log holds (`Entry.data`). Every incoming field is checked against its
type and against hard limits before the node acts on it. A violation is a `WireError`, and the
connection is closed.

The first frame in each direction is a `Hello`, or a `Refusal`; with a secret a `Proof` follows.
Until then the peer may be anyone, so `decode_greeting` reads frames of at most `HELLO_BYTES_MAX`,
as flat arrays of a few short values: whatever the bytes are, a frame costs microseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast, get_origin, get_type_hints

import msgpack

from raftha.config import MEMBERS_MAX
from raftha.config.limits import BACKUP_DESTINATIONS_MAX
from raftha.core import (
    Append,
    AppendReply,
    DurableIndexesReply,
    DurableIndexesRequest,
    Healed,
    Heartbeat,
    HeartbeatReply,
    ReadReply,
    ReadRequest,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.core.durable_indexes import BEHIND_MAX
from raftha.entry import ENTRY_HEADER_BYTES, Entry, decode_entry
from raftha.errors import WireError
from raftha.node.messages import (
    ArchiveNotice,
    ArchiveReport,
    ArchiveRow,
    BackupReply,
    BackupReport,
    BackupRequest,
    DigestReport,
    DigestRequest,
    DigestVerdict,
    Forward,
    ForwardReply,
    HealthReply,
    HealthRequest,
    MembershipReply,
    MembershipRequest,
    PeerMessage,
    RecoveryReport,
    ReplicaReport,
    ReplicaRow,
    SnapshotChunk,
    SnapshotReply,
    SpaceReport,
    Supported,
    TransferReply,
    TransferRequest,
)
from raftha.types import BackupState, ReplicaState
from raftha.version import PROTOCOL_OLDEST

FRAME_BYTES_MAX = 32 << 20
HELLO_BYTES_MAX = 1024
INT_MAX = 1 << 63
"""Terms, indexes, ids and numbers are below it, which leaves room to count on in 64 bits."""
_ARRAY_LENGTH_MAX = 1 << 16
_SHORT_ARRAY_LENGTH = 256
"""More items than any array has but that of an append's entries."""

_LENGTH = struct.Struct("<I")
_TLS_HANDSHAKE = b"\x16\x03"


class Hello(NamedTuple):
    """The identity of the sender and of the intended receiver. The first frame each way.

    The sender speaks the protocols from `protocol_oldest` to `protocol_version`. The code and
    `protocol_version` stay the first two values of this frame for ever, so that two nodes of any
    versions can tell each other why they can't talk. Later versions add fields at the end.

    `cluster_id` is "" for a node that has no cluster yet, `lineage` for one without a log.
    `recorded`: the incarnation of the receiver by the sender's membership, 0 if there is none.
    `stance` is a `Stance` (`raftha/node/founding.py`). `nonce`: a random number of this start.
    `challenge`: random bytes of this connection; empty if the sender has no secret.
    """

    protocol_version: int
    cluster_id: str
    sender: int
    to: int
    incarnation: int
    client_address: str
    protocol_oldest: int = PROTOCOL_OLDEST
    skips: str = ""
    """Stands for the entries that the sender skips (`raftha/storage/directory/skips.py`)."""
    cluster_name: str = ""
    lineage: str = ""
    recorded: int = 0
    stance: int = 0
    nonce: int = 0
    challenge: bytes = b""


class Refusal(NamedTuple):
    """Why the sender is about to close the connection.

    `is_removed`: the receiver was removed from the cluster.
    """

    reason: str
    is_removed: bool


class Proof(NamedTuple):
    """That the sender holds the secret (`raftha/net/peer_secret.py`)."""

    mac: bytes


class Probe(NamedTuple):
    """Asks whether the process at the other end lives, or answers that it does."""

    is_answer: bool


Greeting: TypeAlias = Hello | Refusal | Proof
Frame = PeerMessage | Greeting | Probe

_CODES: dict[type[Any], int] = {
    Hello: 1,
    Refusal: 2,
    VoteRequest: 3,
    VoteReply: 4,
    Append: 5,
    AppendReply: 6,
    Heartbeat: 7,
    HeartbeatReply: 8,
    ReadRequest: 9,
    ReadReply: 10,
    TimeoutNow: 11,
    Forward: 12,
    ForwardReply: 13,
    TransferRequest: 14,
    TransferReply: 15,
    MembershipRequest: 16,
    MembershipReply: 17,
    SnapshotOffer: 18,
    SnapshotChunk: 19,
    SnapshotReply: 20,
    HealthRequest: 21,
    HealthReply: 22,
    SpaceReport: 23,
    DurableIndexesRequest: 24,
    DurableIndexesReply: 25,
    Healed: 26,
    ReplicaReport: 27,
    Supported: 28,
    DigestRequest: 29,
    DigestReport: 30,
    DigestVerdict: 31,
    Proof: 32,
    Probe: 33,
    BackupRequest: 34,
    BackupReply: 35,
    BackupReport: 36,
    ArchiveReport: 37,
    ArchiveNotice: 38,
    RecoveryReport: 40,
}
_WITH_DURABLE_INDEXES = frozenset((Append, Heartbeat, DurableIndexesReply))
_Fields: TypeAlias = tuple[type[Any], tuple[type, ...]]
_CLASSES: dict[int, _Fields] = {
    code: (cls, tuple(get_origin(kind) or kind for kind in get_type_hints(cls).values()))
    for cls, code in _CODES.items()
}
_APPEND_ENTRIES = 1 + Append._fields.index("entries")
"""The place of an append's entries in its frame, behind the code."""
_ARCHIVE_ROW = tuple(get_type_hints(ArchiveRow).values())
_pack = msgpack.Packer().pack
"""One packer for all threads. It packs numbers, strings and arrays of these without releasing the
GIL; to make one for each message takes as long as to use it."""
_GREETINGS = {_CODES[cls]: _CLASSES[_CODES[cls]] for cls in (Hello, Refusal, Proof)}
_GREETING_FIELDS_MAX = 32
"""More fields than this version knows, for the Hello of a later one."""


def encode(message: Frame) -> bytes:
    """The frame that carries `message`."""
    fields: list[Any] = [_CODES[type(message)], *message]
    if type(message) is Append:
        fields[_APPEND_ENTRIES] = [entry.data for entry in message.entries]
    body: bytes = _pack(fields)
    assert len(body) <= FRAME_BYTES_MAX, "senders keep messages below this limit"
    return _LENGTH.pack(len(body)) + body


def decode_greeting(body: bytes) -> Greeting:
    """Decode the body of a frame of the handshake. WireError unless it is one of `Greeting`."""
    if len(body) > HELLO_BYTES_MAX:
        raise WireError(f"the first frame has {len(body)} bytes, over the limit {HELLO_BYTES_MAX}")
    message = _build(_of_this_version(_unpack(body, _GREETING_FIELDS_MAX)), _GREETINGS)
    assert isinstance(message, Hello | Refusal | Proof), "there are no other classes in _GREETINGS"
    return message


def decode(body: bytes) -> Frame:
    """Decode a frame's body. WireError unless it is a message with fields of the right types."""
    # msgpack allocates an array by the length that it declares, before it has read the items, and
    # arrays nest. So no array may be longer than the entries that fit in the body.
    length_max = min(_ARRAY_LENGTH_MAX, _SHORT_ARRAY_LENGTH + len(body) // ENTRY_HEADER_BYTES)
    message = _build(_unpack(body, length_max), _CLASSES)
    cls = type(message)
    if cls in _WITH_DURABLE_INDEXES:
        _check_behind(message.behind)
    if cls is ReplicaReport:
        return cast(Frame, message._replace(rows=_decode_rows(message.rows)))
    if cls in (ArchiveReport, ArchiveNotice):
        return cast(Frame, message._replace(rows=_decode_archive_rows(message.rows)))
    if cls is BackupReport and message.state >= len(BackupState):
        raise WireError(f"{message.state} is not a state of a backup")
    if cls is DigestVerdict:
        _check_ids(message.diverged)
    return _with_entries(message) if cls is Append else cast(Frame, message)


def _of_this_version(values: Any) -> Any:
    """A greeting of any version with the fields of this one.

    Fields that a later version adds are left out. The missing ones of an earlier version are empty:
    the receiver refuses that version by its number.
    """
    if type(values) is not tuple or len(values) < 2 or values[0] != _CODES[Hello]:
        return values
    _, kinds = _GREETINGS[values[0]]
    known = values[: 1 + len(kinds)]
    version = known[1]
    if type(version) is int and version < PROTOCOL_OLDEST:
        known += tuple(kind() for kind in kinds[len(known) - 1 :])
    return known


def _unpack(body: bytes, array_length_max: int) -> Any:
    try:
        return msgpack.unpackb(
            body,
            use_list=False,
            max_array_len=array_length_max,
            max_str_len=HELLO_BYTES_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"a frame is not msgpack: {error}") from error


def _build(values: Any, classes: Mapping[int, _Fields]) -> Any:
    """A message from its unpacked frame, with the types of its fields checked."""
    if not isinstance(values, tuple) or not values or type(values[0]) is not int:
        raise WireError("a frame must be an array that begins with a code")
    known = classes.get(values[0])
    if known is None:
        expected = "" if classes is _CLASSES else "; the first frame must be Hello"
        raise WireError(f"unknown message code {values[0]}{expected}")
    cls, kinds = known
    if len(values) - 1 != len(kinds):
        raise WireError(f"{cls.__name__} has {len(kinds)} fields, got {len(values) - 1}")
    for value, kind in zip(values[1:], kinds, strict=True):
        if type(value) is not kind or (type(value) is int and not 0 <= value < INT_MAX):
            raise WireError(f"{cls.__name__} has a field of a wrong type: {value!r:.40}")
    return cls(*values[1:])


def _decode_rows(rows: tuple[Any, ...]) -> tuple[ReplicaRow, ...]:
    if len(rows) > MEMBERS_MAX:
        raise WireError(f"a report has at most {MEMBERS_MAX} rows, got {len(rows)}")
    for row in rows:
        if type(row) is not tuple or len(row) != len(ReplicaRow._fields):
            raise WireError("a replica's row must be an array of numbers")
        if not all(type(number) is int and 0 <= number < INT_MAX for number in row):
            raise WireError("a replica's row must have whole numbers")
        if row[1] >= len(ReplicaState):
            raise WireError(f"{row[1]} is not a state of a replica")
    return tuple(ReplicaRow(*row) for row in rows)


def _decode_archive_rows(rows: tuple[Any, ...]) -> tuple[ArchiveRow, ...]:
    if len(rows) > BACKUP_DESTINATIONS_MAX:
        raise WireError(f"a log has at most {BACKUP_DESTINATIONS_MAX} archives, got {len(rows)}")
    for row in rows:
        if type(row) is not tuple or len(row) != len(_ARCHIVE_ROW):
            raise WireError("an archive's row must be an array of its fields")
        if any(type(value) is not kind for value, kind in zip(row, _ARCHIVE_ROW, strict=True)):
            raise WireError("an archive's row has a field of a wrong type")
        if not all(0 <= value < INT_MAX for value in row if type(value) is int):
            raise WireError("an archive's row must have whole numbers")
    return tuple(ArchiveRow(*row) for row in rows)


def _check_ids(ids: tuple[Any, ...]) -> None:
    if len(ids) > MEMBERS_MAX:
        raise WireError(f"at most {MEMBERS_MAX} members can have diverged, got {len(ids)}")
    if not all(type(number) is int and 0 < number < INT_MAX for number in ids):
        raise WireError("the ids of members must be whole numbers")


def _check_behind(behind: tuple[Any, ...]) -> None:
    if len(behind) > BEHIND_MAX or len(behind) % 2:
        raise WireError(f"durable indexes must be at most {BEHIND_MAX // 2} pairs of numbers")
    for number in behind:
        if type(number) is not int or not 0 <= number < INT_MAX:
            raise WireError("durable indexes must be whole numbers")


def _with_entries(message: Append) -> Append:
    """The append with its entries decoded from bytes."""
    entries: list[Entry] = []
    index, term = message.prev_index, message.prev_term
    encoded: Sequence[Any] = message.entries
    for data in encoded:
        if type(data) is not bytes:
            raise WireError("an append's entries must be byte strings")
        try:
            entry = decode_entry(data)
        except ValueError as error:
            raise WireError(str(error)) from error
        if entry.index != index + 1 or entry.term < term:
            raise WireError(f"entry {entry.index} of term {entry.term} follows {index} of {term}")
        entries.append(entry)
        index, term = entry.index, entry.term
    if term > message.term:
        raise WireError(f"an append of term {message.term} holds an entry of term {term}")
    fields: list[Any] = [*message]
    fields[_APPEND_ENTRIES - 1] = tuple(entries)
    return Append(*fields)


def _is_one_frame(data: bytes) -> bool:
    """Whether this is exactly one frame of an accepted size."""
    if not _LENGTH.size <= len(data) <= FRAME_BYTES_MAX:
        return False
    return bool(_LENGTH.unpack_from(data)[0] == len(data) - _LENGTH.size)


class FrameReader:
    """Splits a stream of bytes into messages. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.is_greeted = False
        """Set it once the peer is accepted. Until then frames are small and are greetings."""

    @property
    def bytes_max(self) -> int:
        """The longest frame that is accepted now."""
        return FRAME_BYTES_MAX if self.is_greeted else HELLO_BYTES_MAX

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the messages that `data` completes; WireError ends the stream for good."""
        if self.is_greeted and not self._buffer and _is_one_frame(data):
            yield decode(data[_LENGTH.size :])  # The usual case, without copies.
            return
        self._buffer += data
        offset = 0
        try:
            while len(self._buffer) - offset >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._buffer, offset)
                if size > self.bytes_max:
                    if self._buffer.startswith(_TLS_HANDSHAKE):
                        raise WireError("it speaks TLS, which is not configured here")
                    raise WireError(f"a frame of {size} bytes is over the limit {self.bytes_max}")
                end = offset + _LENGTH.size + size
                if len(self._buffer) < end:
                    break
                body = bytes(memoryview(self._buffer)[offset + _LENGTH.size : end])
                offset = end
                yield decode(body) if self.is_greeted else decode_greeting(body)
        finally:
            del self._buffer[:offset]
