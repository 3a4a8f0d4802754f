"""Every parser against hostile and malformed bytes: it raises raftha's errors, and no others.

Each test names the results that its parser may have. Anything else, a builtin exception above all,
would end a node's loop or leave a caller without an outcome. pytest-timeout catches a parser that
hangs, tracemalloc one that reserves memory because a header claims it. Requests of clients are in
tests/unit/test_resp.py, damage to a log's bits in tests/property/test_wal.py.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import tracemalloc
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raftha.client.resp import ProtocolError, ReplyError, RequestParser, error_from_reply
from raftha.config import HaConfig
from raftha.entry import decode_entry, decode_groups
from raftha.errors import ConfigError, Corrupt, WireError
from raftha.net.tls import certified_uri
from raftha.net.wire import FrameReader, decode
from raftha.server import ServerConfig
from raftha.server.commands import find_command, find_open_command
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.state.commands import unpack_commands
from raftha.storage.state.state import State
from tests.sim.disk import SimulatedDisk
from tests.sim.store import DictStore
from tests.support.state_bench import Bench
from tests.support.wal import FOLDER, SEGMENT_BYTES, entries_after, opener, read_all

pytestmark = pytest.mark.slow

MEMORY_BYTES_MAX = 8 << 20

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=80)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NESTED = b"\x91" * 100_000
CLAIMS = [
    b"\xdd\xff\xff\xff\xff",  # An array, a map, text, bytes and an extension of 4 GiB.
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xd6\xff\x00\x00\x00\x00",  # A timestamp.
    b"\xdd\x00\x00\xff\xff" * 50,
    NESTED,
]


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- peers


@given(st.integers(0, 20) | SCALARS, st.lists(VALUES, max_size=10))
def test_a_frame_of_anything_is_a_message_or_a_wire_error(code: Any, fields: list[Any]) -> None:
    with contextlib.suppress(WireError):
        decode(msgpack.packb([code, *fields]))


@given(st.binary(max_size=300))
@example(b"")
def test_a_frame_of_garbage_is_a_message_or_a_wire_error(body: bytes) -> None:
    with contextlib.suppress(WireError):
        decode(body)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim[:6].hex())
@pytest.mark.parametrize("head", [b"", b"\x92\x05", b"\x9f\x05\x01\x02\x05\x00\x00\x02\x01"])
def test_a_frame_that_claims_much_costs_little(head: bytes, claim: bytes) -> None:
    with little_memory(), pytest.raises(WireError):
        decode(head + claim)


@given(st.lists(st.binary(max_size=50), max_size=20), st.booleans())
def test_a_stream_of_garbage_never_keeps_more_than_a_frame(
    parts: list[bytes], is_known: bool
) -> None:
    frames = FrameReader()
    if is_known:
        frames.is_greeted = True
    with contextlib.suppress(WireError):
        for part in parts:
            for _ in frames.feed(part):
                pass
            assert len(frames._buffer) <= frames.bytes_max + 4


@given(st.binary(max_size=200))
def test_entries_and_groups_of_garbage_are_value_errors(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_entry(data)
    with contextlib.suppress(ValueError):
        deque(decode_groups(memoryview(data)))


@given(st.binary(max_size=200), st.integers(0, (1 << 32) - 1))
@example(NESTED, 1)
def test_commands_of_garbage_are_commands_or_none(data: bytes, count: int) -> None:
    commands = unpack_commands(data, count)
    assert commands is None or len(commands) == count


@given(st.dictionaries(st.text(max_size=3), VALUES))
def test_a_certificate_with_other_fields_names_no_node(fields: dict[str, Any]) -> None:
    assert certified_uri(fields) == ""


# ---------------------------------------------------------------- clients


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=30), st.integers(0, 100))
def test_a_client_before_auth_can_make_the_server_keep_little(
    parts: list[bytes], request_bytes_max: int
) -> None:
    parser = RequestParser(request_bytes_max)
    requests: deque[Any] = deque()
    with contextlib.suppress(ProtocolError):
        for part in parts:
            parser.feed(part, requests)
    kept = sum(map(len, parser._arguments))
    assert kept <= request_bytes_max


@given(st.lists(st.binary(max_size=10), min_size=1, max_size=5))
def test_a_request_of_anything_is_a_command_or_an_error_reply(request: list[bytes]) -> None:
    for find in (find_command, find_open_command):
        with contextlib.suppress(ReplyError):
            find(request)


@given(st.text())
def test_any_error_reply_is_an_error_of_ours(text: str) -> None:
    error_from_reply(text)


# ---------------------------------------------------------------- the configuration

SETTINGS = st.sampled_from(
    ["node_id", "data_dir", "members", "cluster_name", "insecure", "tls_ca", "tls_key", "listen",
     "client_address", "request_timeout_s", "wal_segment_bytes", "connections_max", "auth_token",
     "auth_token_file", "listen_tls_cert", "checkpoint_interval_sec", "max_wal_size"]
)  # fmt: skip
TABLES = st.dictionaries(SETTINGS | st.text(max_size=5), VALUES, max_size=8)
LOADERS: list[Callable[[Path], object]] = [HaConfig.from_toml, ServerConfig.from_toml]


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toml") / "node.toml"


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
@example(b"a = " + b"[" * 20_000)
@example(b"a = " + b"{a=" * 20_000)
@example(b"a = " + b"9" * 10_000)
@example(b"a = 0x" + b"f" * 10_000)
@example(b"a = 2024-13-45")
@example(b"a" + b".a" * 5_000 + b" = 1")
def test_a_file_of_garbage_is_a_config_error(toml: Path, content: bytes) -> None:
    toml.write_bytes(content)
    for load in LOADERS:
        with pytest.raises(ConfigError):
            load(toml)


@given(TABLES)
@example({"heartbeat_interval_ms": 10**5000})
@example({"request_timeout_s": float("inf"), "checkpoint_interval_sec": float("nan")})
def test_a_table_of_anything_is_a_config_or_a_config_error(table: dict[str, Any]) -> None:
    valid = {"node_id": 1, "data_dir": "d", "members": {"1": "127.0.0.1:1"}, "listen": "[::1]:2"}
    with contextlib.suppress(ConfigError):
        ServerConfig.from_mapping({**valid, **table})
    valid.pop("listen")
    with contextlib.suppress(ConfigError):
        HaConfig.from_mapping({**valid, **table})


@given(st.dictionaries(st.text(max_size=6), VALUES, max_size=4))
def test_members_of_anything_are_a_config_or_a_config_error(members: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        HaConfig.from_mapping({"node_id": 1, "data_dir": "d", "members": members})


# ---------------------------------------------------------------- the disk


def _write_log() -> tuple[SimulatedDisk, list[str]]:
    disk = SimulatedDisk(Random(1))
    wal = opener(disk)()
    for _ in range(30):
        wal.append(None, entries_after(wal.last, 1, [700]))
    wal.close()
    names = sorted(name for name in disk.listdir(FOLDER) if not name.startswith("spare"))
    return disk, [f"{FOLDER}/{name}" for name in names]


@given(st.data())
def test_a_log_with_a_piece_of_garbage_is_whole_or_corrupt(data: st.DataObject) -> None:
    disk, paths = _write_log()
    entries = read_all(opener(disk)())
    path = data.draw(st.sampled_from(paths))
    garbage = data.draw(st.binary(min_size=1, max_size=300))
    places = st.sampled_from([0, 8, 64, 4096, 4104]) | st.integers(0, SEGMENT_BYTES - 300)
    place = data.draw(places)
    whole = disk.contents(path)
    disk.damage(path, whole[:place] + garbage + whole[place + len(garbage) :])
    # Everything was synced before the log was closed: no missing entry may pass for a torn tail.
    with contextlib.suppress(Corrupt):
        assert read_all(opener(disk)()) == entries


@given(st.binary(max_size=5000), st.booleans())
def test_a_log_with_a_file_of_garbage_is_corrupt(content: bytes, is_padded: bool) -> None:
    disk, paths = _write_log()
    disk.damage(paths[-1], content.ljust(SEGMENT_BYTES, b"\0") if is_padded else content)
    with pytest.raises(Corrupt):
        opener(disk)()


@given(st.lists(VALUES, max_size=5) | VALUES)
def test_meta_of_anything_with_a_right_checksum_is_corrupt(value: Any) -> None:
    store = DictStore()
    packed = msgpack.packb(value)
    store.write([], zlib.crc32(packed).to_bytes(4, "little") + packed)
    with pytest.raises((Corrupt, ConfigError)):
        State(store)


@given(st.integers(0, 3), VALUES)
def test_meta_with_one_wrong_field_is_a_state_or_corrupt(place: int, value: Any) -> None:
    bench = Bench()
    bench.checkpoint()
    meta = bench.store.meta()
    assert meta is not None
    fields = msgpack.unpackb(meta[4:])
    fields[place] = value
    packed = msgpack.packb(fields)
    bench.store.write([], zlib.crc32(packed).to_bytes(4, "little") + packed)
    with contextlib.suppress(Corrupt, ConfigError):
        State(bench.store)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim[:6].hex())
def test_meta_that_claims_much_costs_little(claim: bytes) -> None:
    store = DictStore()
    packed = b"\x94\x01" + claim
    store.write([], zlib.crc32(packed).to_bytes(4, "little") + packed)
    with little_memory(), pytest.raises(Corrupt):
        State(store)


@given(
    st.binary(max_size=100)
    | VALUES.map(lambda value: json.dumps(value, default=repr).encode())
    | st.fixed_dictionaries(
        {"format": st.just(2), "cluster_id": st.just("c"), "node_id": st.just(1)},
        optional={"incarnation": VALUES, "lost": VALUES, "checksum": VALUES},
    ).map(lambda value: json.dumps(value, default=repr).encode())
)
@example(b"[" * 100_000)
@example(b"9" * 10_000)
@example(b'{"format": 2, "checksum": 1, "node_id": 1, "incarnation": 1}')
@example(b'{"format": 1}')
def test_an_identity_of_anything_is_an_identity_or_corrupt(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "identity").write_bytes(content)
        try:
            data = DataDirectory(Path(folder), "c", 1)
        except (Corrupt, ConfigError):
            return
        data.close()
