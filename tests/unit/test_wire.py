"""The wire format: messages survive it unchanged, and it admits nothing else."""

from __future__ import annotations

import contextlib
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.core import (
    Append,
    AppendReply,
    DurableIndexesReply,
    DurableIndexesRequest,
    Heartbeat,
    HeartbeatReply,
    ReadReply,
    ReadRequest,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.entry import LOG_START, EntryKind, make_entry
from raftha.errors import WireError
from raftha.net.wire import (
    HELLO_BYTES_MAX,
    Frame,
    FrameReader,
    Hello,
    Probe,
    Proof,
    Refusal,
    decode,
    decode_greeting,
    encode,
)
from raftha.node.messages import (
    ArchiveNotice,
    ArchiveReport,
    ArchiveRow,
    Forward,
    ForwardReply,
    MembershipReply,
    MembershipRequest,
    ReplicaReport,
    ReplicaRow,
    SnapshotChunk,
    SnapshotReply,
    SpaceReport,
    Supported,
    TransferReply,
    TransferRequest,
)
from raftha.storage.state.versions import pack_names
from raftha.version import PROTOCOL_OLDEST, PROTOCOL_VERSION

ARCHIVE_ROW = ArchiveRow("local", 9, 30, 1 << 50, 7, 1, 0, 0, False, "")
FIRST = make_entry(LOG_START, 3, 1_000, EntryKind.NOOP, b"", 0)
SECOND = make_entry(FIRST.position, 4, 2_000, EntryKind.BATCH, b"payload", 7)

MESSAGES: list[Frame] = [
    Hello(1, "c" * 32, 1, 2, 1 << 62, "127.0.0.1:7201"),
    Hello(1, "c" * 32, 1, 2, 1 << 62, "127.0.0.1:7201", nonce=1 << 61, challenge=b"c" * 16),
    Refusal("another cluster", False),
    Proof(b"m" * 32),
    Probe(is_answer=True),
    VoteRequest(1, 2, 5, 10, 4, True, False),
    VoteReply(1, 2, 5, True, False),
    Append(1, 2, 5, 0, 0, 2, 1, (FIRST, SECOND)),
    Append(1, 2, 5, 0, 0, 2, 1, (), behind=(1, 0, 2, 1)),
    AppendReply(1, 2, 5, False, 9, 7, 3, applied=5, applied_sequence=40),
    Heartbeat(1, 2, 5, 2, 77, behind=(1, 2, 2, 0), sent_ns=1 << 60, lease_ms=150),
    HeartbeatReply(1, 2, 5, 77, 5, 40, sent_ns=1 << 60, promised_ms=100),
    DurableIndexesRequest(1, 2, 5, 9),
    DurableIndexesReply(1, 2, 5, 9, (1, 0, 2, 0, 3, 9)),
    ReplicaReport(1, 2, 5, (ReplicaRow(1, 2, 9, 7, 8, 6, 0, 1, 12), ReplicaRow(*[0] * 9))),
    ArchiveReport(1, 2, 9, 0, 0, ()),
    ArchiveNotice(1, 2, 1 << 50, 3, 8, 5, 7, (ARCHIVE_ROW, ARCHIVE_ROW._replace(error="no route"))),
    ReadRequest(1, 2, 5, 42),
    ReadReply(1, 2, 5, 42, 17),
    TimeoutNow(1, 2, 5),
    Forward(1, 2, b"group"),
    ForwardReply(1, 2, 1 << 40, 3, True),
    SpaceReport(1, 2, True),
    TransferRequest(1, 2, 3),
    TransferReply(1, 2, 3, "it does not answer"),
    MembershipRequest(1, 2, 4, True, "127.0.0.1:7104", "primary", False, True, False),
    MembershipRequest(1, 2, 4, False, "127.0.0.1:7104", "", True, False, True),
    MembershipReply(1, 2, 4, "InvalidRequest", "no"),
    SnapshotOffer(1, 2, 3, 1 << 62, 50, 2, 1 << 40, b"s" * 32),
    SnapshotChunk(1, 2, 1 << 62, 524288, 1 << 31, bytes(600_000)),
    SnapshotReply(1, 2, 1 << 62, 1, 1 << 40),
    Supported(1, 2, True, "0.1.0", 6, 7, 0, 2, pack_names(frozenset({"add", "move"}))),
]


def reader() -> FrameReader:
    frames = FrameReader()
    frames.is_greeted = True
    return frames


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_survives_the_wire(message: Frame) -> None:
    assert list(reader().feed(encode(message))) == [message]


def test_an_entrys_bytes_travel_unchanged() -> None:
    frame = encode(Append(1, 2, 5, 0, 0, 2, 1, (FIRST, SECOND)))
    assert FIRST.data in frame
    assert SECOND.data in frame


@given(st.lists(st.integers(1, 50), max_size=40))
def test_a_stream_may_arrive_in_any_pieces(sizes: list[int]) -> None:
    stream = b"".join(encode(message) for message in MESSAGES)
    frames, seen, offset = reader(), [], 0
    for size in [*sizes, len(stream)]:
        seen += list(frames.feed(stream[offset : offset + size]))
        offset += size
    assert seen == MESSAGES


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error_or_nothing_yet(data: bytes) -> None:
    try:
        for message in reader().feed(data):
            assert type(message) in {type(m) for m in MESSAGES}
    except WireError:
        pass


@given(st.data())
def test_a_message_with_a_byte_changed_never_crashes_the_reader(data: st.DataObject) -> None:
    frame = bytearray(encode(data.draw(st.sampled_from(MESSAGES))))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        list(reader().feed(bytes(frame)))


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("text first",),
        (99,),
        (9, 1, 2, 3),
        (9, 1, 2, 3, 4, 5, 6),
        (9, 1, 2, 3, 4, "five"),
        (9, 1, 2, 3, 4, True),
        (9, 1, 2, 3, 4, -5),
        (9, 1, 2, 3, 4, 1 << 63),
        (5, 1, 2, 5, 0, 0, 2, 1, ["text"], []),
        (5, 1, 2, 5, 0, 0, 2, 1, [b"short"], []),
        (5, 1, 2, 5, 0, 0, 2, 1, [SECOND.data], []),
        (5, 1, 2, 3, 0, 0, 2, 1, [FIRST.data, SECOND.data], []),
        (27, 1, 2, 5, [[1] * 8]),
        (27, 1, 2, 5, [[1, 5, 1, 1, 1, 1, 1, 1, 1]]),
        (27, 1, 2, 5, [[1] * 8 + [-1]]),
        (27, 1, 2, 5, [[1] * 9] * 10),
        (27, 1, 2, 5, [1]),
        (5, 1, 2, 5, 0, 0, 2, 1, [], [1]),
        (5, 1, 2, 5, 0, 0, 2, 1, [], [1, -1]),
        (5, 1, 2, 5, 0, 0, 2, 1, [], [1, "text"]),
        (5, 1, 2, 5, 0, 0, 2, 1, [], [1, 0] * 10),
        7,
        {"a": 1},
    ],
)
def test_a_malformed_message_is_refused(values: object) -> None:
    with pytest.raises(WireError):
        decode(msgpack.packb(values))


def test_nothing_large_is_read_before_hello() -> None:
    frames = FrameReader()
    with pytest.raises(WireError, match="over the limit"):
        list(frames.feed((HELLO_BYTES_MAX + 1).to_bytes(4, "little")))


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="over the limit"):
        list(reader().feed(b"\xff\xff\xff\xff"))


@pytest.mark.parametrize("prefix", [b"\xdc\xff\xff", b"\xdd\x00\x00\xff\xff", b"\xdc\x00\xff"])
@pytest.mark.parametrize("is_greeted", [False, True])
def test_declared_array_lengths_cost_neither_time_nor_memory(
    prefix: bytes, is_greeted: bool
) -> None:
    body = prefix * (HELLO_BYTES_MAX // len(prefix))
    frames = FrameReader()
    frames.is_greeted = is_greeted
    tracemalloc.start()
    with pytest.raises(WireError):
        list(frames.feed(len(body).to_bytes(4, "little") + body))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_first_frame_is_a_greeting_and_nothing_else() -> None:
    for message in MESSAGES:
        frames = FrameReader()
        if isinstance(message, Hello | Refusal | Proof):
            assert list(frames.feed(encode(message))) == [message]
        else:
            with pytest.raises(WireError):
                list(frames.feed(encode(message)))


def test_an_append_of_the_smallest_entries_is_within_the_array_limit() -> None:
    entries = [make_entry(LOG_START, 1, 1, EntryKind.NOOP, b"", 0)]
    while len(entries) < 5_000:
        entries.append(make_entry(entries[-1].position, 1, 1, EntryKind.NOOP, b"", 0))
    message = Append(1, 2, 1, 0, 0, 0, 0, tuple(entries))
    assert list(reader().feed(encode(message))) == [message]


def hello_frame(*fields: object) -> bytes:
    packed: bytes = msgpack.packb([1, *fields])
    return packed


def test_a_hello_of_a_later_version_may_have_more_fields() -> None:
    hello = Hello(PROTOCOL_VERSION + 3, "c" * 32, 1, 2, 9, "", PROTOCOL_VERSION + 1)
    assert decode_greeting(hello_frame(*hello, "new", 7, b"bytes")) == hello


def test_a_hello_of_an_earlier_version_can_be_told_why_it_is_refused() -> None:
    decoded = decode_greeting(hello_frame(PROTOCOL_OLDEST - 1, "c" * 32, 1, 2, 9))
    assert isinstance(decoded, Hello)
    assert (decoded.protocol_version, decoded.sender) == (PROTOCOL_OLDEST - 1, 1)
    assert (decoded.client_address, decoded.protocol_oldest) == ("", 0)


def test_a_hello_of_this_version_has_all_its_fields() -> None:
    with pytest.raises(WireError, match="Hello has 14 fields, got 5"):
        decode_greeting(hello_frame(PROTOCOL_VERSION, "c" * 32, 1, 2, 9))


@pytest.mark.parametrize(
    "rows",
    [
        (ARCHIVE_ROW,) * 5,
        (ARCHIVE_ROW._replace(index=-1),),
        (ARCHIVE_ROW._replace(index=1 << 63),),
        (ARCHIVE_ROW._replace(verified=True),),
        (ARCHIVE_ROW._replace(conflict=1),),  # type: ignore[arg-type]
        (ARCHIVE_ROW._replace(error=b"x"),),  # type: ignore[arg-type]
        (ARCHIVE_ROW._replace(destination=1),),  # type: ignore[arg-type]
    ],
)
def test_wrong_rows_of_an_archive_are_refused(rows: tuple[ArchiveRow, ...]) -> None:
    body = encode(ArchiveReport(1, 2, 9, 0, 0, rows))[4:]
    with pytest.raises(WireError, match="archive"):
        decode(body)
