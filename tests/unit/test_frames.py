"""Frames: what was written is read back; every change of it, however small, is BackupDamaged."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from hashlib import sha256
from threading import Thread

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from raftha.errors import BackupDamaged, KeyMissing
from raftha.storage.backup import frames
from raftha.storage.backup.crypto import NO_KEYS, DataKey, KeyRing
from raftha.storage.backup.frames import (
    FRAME_HEAD_BYTES,
    FRAME_RAW_MAX,
    HEADER_BYTES,
    OTHER,
    RUN,
    FrameWriter,
    ObjectSeal,
    read_frame_at,
    read_frames,
    read_whole,
    seal_frame,
    write_whole,
)

NAME = "7f/backups/x/run-0000"
KEY = DataKey("0f" * 16, bytes(range(32)), 1)
RING = KeyRing([KEY])
BOTH = [pytest.param(None, NO_KEYS, id="plain"), pytest.param(KEY, RING, id="encrypted")]


def cut(data: bytes) -> list[bytes]:
    """The frames of an object, without its header."""
    found = []
    offset = HEADER_BYTES
    while offset < len(data):
        size = frames.frame_size(memoryview(data)[offset:], NAME)
        found.append(data[offset : offset + size])
        offset += size
    return found


def small_object(key: DataKey | None) -> tuple[bytes, list[bytes]]:
    """An object of three small frames."""
    seal = ObjectSeal.new(RUN, NAME, key, salt=bytes(16))
    raws = [b"first " * 4, b"second", b"third"]
    sealed = [
        seal_frame(seal, number, raw, is_last=number == 2, level=3)
        for number, raw in enumerate(raws)
    ]
    return seal.header + b"".join(sealed), raws


@pytest.mark.parametrize(("key", "ring"), BOTH)
@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("size", [0, 1, FRAME_RAW_MAX, FRAME_RAW_MAX + 1, 3 * FRAME_RAW_MAX])
def test_what_was_written_is_read_back(
    key: DataKey | None, ring: KeyRing, level: int, size: int
) -> None:
    raw = (b"some text that compresses " * (size // 26 + 1))[:size]
    data = write_whole(raw, RUN, NAME, key, level)
    assert read_whole(data, RUN, NAME, ring) == raw
    assert (len(data) < len(raw) / 10) == (level > 0 and size > 1000)


@given(st.lists(st.binary(max_size=100_000), max_size=12), st.booleans())
def test_pieces_of_any_size_make_frames(pieces: list[bytes], is_encrypted: bool) -> None:
    writer = FrameWriter(RUN, NAME, KEY if is_encrypted else None, 1)
    data = b"".join([*map(writer.add, pieces), writer.finish()])
    raws = list(read_frames(data, RUN, NAME, RING if is_encrypted else NO_KEYS))
    assert b"".join(raws) == b"".join(pieces)
    assert all(len(raw) == FRAME_RAW_MAX for raw in raws[:-1])


def test_data_that_does_not_compress_is_stored() -> None:
    raw = bytes(sha256(bytes([n])).digest()[0] for n in range(200))
    assert len(write_whole(raw, RUN, NAME, None, 9)) == HEADER_BYTES + FRAME_HEAD_BYTES + 200 + 4


@pytest.mark.parametrize(("key", "ring"), BOTH)
def test_each_bit_that_flips_is_found(key: DataKey | None, ring: KeyRing) -> None:
    data, _ = small_object(key)
    for place in range(len(data) * 8):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises((BackupDamaged, KeyMissing)):
            read_whole(bytes(changed), RUN, NAME, ring)


@pytest.mark.parametrize(("key", "ring"), BOTH)
def test_each_cut_and_each_addition_is_found(key: DataKey | None, ring: KeyRing) -> None:
    data, _ = small_object(key)
    for size in range(len(data)):
        with pytest.raises(BackupDamaged):
            read_whole(data[:size], RUN, NAME, ring)
    for more in (b"\0", cut(data)[-1], data):
        with pytest.raises(BackupDamaged, match="follows its last frame"):
            read_whole(data + more, RUN, NAME, ring)


@pytest.mark.parametrize(("key", "ring"), BOTH)
@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2), (0, 0, 2), (0, 1, 1, 2), (2,), (1, 2)])
def test_frames_that_are_exchanged_missing_or_repeated_are_found(
    key: DataKey | None, ring: KeyRing, order: tuple[int, ...]
) -> None:
    data, _ = small_object(key)
    parts = cut(data)
    with pytest.raises(BackupDamaged, match="frame"):
        read_whole(data[:HEADER_BYTES] + b"".join(parts[n] for n in order), RUN, NAME, ring)


@pytest.mark.parametrize(("key", "ring"), BOTH)
def test_an_object_under_another_name_or_of_another_kind_is_found(
    key: DataKey | None, ring: KeyRing
) -> None:
    data, _ = small_object(key)
    with pytest.raises(BackupDamaged, match="frame 0"):
        read_whole(data, RUN, NAME + "1", ring)
    with pytest.raises(BackupDamaged, match="kind is 1"):
        read_whole(data, OTHER, NAME, ring)


@pytest.mark.parametrize(("key", "ring"), BOTH)
def test_a_frame_of_another_object_is_found(key: DataKey | None, ring: KeyRing) -> None:
    one = write_whole(b"one", RUN, "a", key, 0)
    other = write_whole(b"two", RUN, "b", key, 0)
    with pytest.raises(BackupDamaged):
        read_whole(one[:HEADER_BYTES] + other[HEADER_BYTES:], RUN, "a", ring)


@pytest.mark.parametrize(("key", "ring"), BOTH)
def test_one_frame_is_read_alone_by_its_number(key: DataKey | None, ring: KeyRing) -> None:
    data, raws = small_object(key)
    for number, (frame, raw) in enumerate(zip(cut(data), raws, strict=True)):
        of = {"kind": RUN, "object_name": NAME, "keys": ring}
        assert read_frame_at(data[:HEADER_BYTES], frame, number, **of) == raw  # type: ignore[arg-type]
        with pytest.raises(BackupDamaged, match="frame"):
            read_frame_at(data[:HEADER_BYTES], frame, number + 1, **of)  # type: ignore[arg-type]
        with pytest.raises(BackupDamaged, match="frame"):
            read_frame_at(data[:HEADER_BYTES], frame[:-1], number, **of)  # type: ignore[arg-type]


def test_an_object_without_a_key_is_refused_where_all_are_encrypted() -> None:
    """Else the owner of a bucket could replace objects."""
    with pytest.raises(BackupDamaged, match="not encrypted"):
        read_whole(write_whole(b"forged", RUN, NAME, None, 0), RUN, NAME, RING)


def test_an_object_of_another_key_says_which_key_is_missing() -> None:
    other = DataKey("aa" * 16, bytes(32), 1)
    with pytest.raises(KeyMissing) as raised:
        read_whole(write_whole(b"x", RUN, NAME, other, 0), RUN, NAME, RING)
    assert raised.value.key_id == "aa" * 16


def test_the_same_data_key_never_encrypts_two_objects_alike() -> None:
    one, two = (write_whole(b"equal", RUN, NAME, KEY, 0) for _ in range(2))
    assert one[HEADER_BYTES:] != two[HEADER_BYTES:]


def test_an_object_without_encryption_is_the_same_each_time() -> None:
    assert write_whole(b"equal", RUN, NAME, None, 3) == write_whole(b"equal", RUN, NAME, None, 3)


def forged(payload: bytes, flags: int = 1) -> bytes:
    """An object without encryption whose seal is right, as anyone can make one."""
    header = struct.pack("<4sBBBx16s16s", b"rfbk", 1, RUN, 0, bytes(16), bytes(16))
    place = struct.pack("<32sQB", sha256(header + NAME.encode()).digest(), 0, flags)
    seal = struct.pack("<I", zlib.crc32(payload, zlib.crc32(place)))
    return header + struct.pack("<IB", len(payload) + 4, flags) + payload + seal


def test_the_format_is_as_its_description_says() -> None:
    assert read_whole(forged(b"stored", 3), RUN, NAME, NO_KEYS) == b"stored"
    compressed = zstandard.ZstdCompressor().compress(b"text" * 50)
    assert read_whole(forged(compressed), RUN, NAME, NO_KEYS) == b"text" * 50


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no zstd at all",
        zstandard.ZstdCompressor().compress(bytes(FRAME_RAW_MAX + 1)),
        zstandard.ZstdCompressor().compress(bytes(50 << 20)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(50)),
        b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + b"\0" * 8,  # A content of 2**64 - 1 bytes.
        b"\x28\xb5\x2f\xfd\xe0" + (1 << 17).to_bytes(8, "little") + b"\0" * 8,
        zstandard.ZstdCompressor().compress(b"")[:6],
    ],
    ids=["empty", "other", "large", "bomb", "unsized", "endless", "short", "cut"],
)
def test_a_forged_frame_is_refused_within_little_memory(payload: bytes) -> None:
    data = forged(payload)
    tracemalloc.start()
    try:
        with pytest.raises(BackupDamaged):
            read_whole(data, RUN, NAME, NO_KEYS)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_content_beyond_the_readers_limit_is_refused() -> None:
    data = write_whole(bytes(3 * FRAME_RAW_MAX), RUN, NAME, None, 1)
    with pytest.raises(BackupDamaged, match="more than 300000 bytes"):
        read_whole(data, RUN, NAME, NO_KEYS, size_max=300_000)


def test_several_threads_seal_frames_of_one_object() -> None:
    seal = ObjectSeal.new(RUN, NAME, KEY)
    raws = [bytes([n]) * 50_000 for n in range(16)]
    sealed: dict[int, bytes] = {}

    def work(numbers: range) -> None:
        for n in numbers:
            sealed[n] = seal_frame(seal, n, raws[n], is_last=n == 15, level=3)

    threads = [Thread(target=work, args=(range(start, 16, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = seal.header + b"".join(sealed[n] for n in range(16))
    assert list(read_frames(data, RUN, NAME, RING)) == raws


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_damaged(data: bytes, is_begun: bool) -> None:
    whole, _ = small_object(None)
    data = whole[:HEADER_BYTES] + data if is_begun else data
    with pytest.raises(BackupDamaged):
        read_whole(data, RUN, NAME, NO_KEYS)
