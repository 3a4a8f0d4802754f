"""The kernel's requests and the replies to them through /dev/fuse, as bytes: protocol 7.31.

The layouts are those of <linux/fuse.h>, named as there. Only what the server needs is here; it
answers all other requests with ENOSYS, and the kernel does without them.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

MAJOR, MINOR = 7, 31
WRITE_BYTES_MAX = 1 << 20
REQUEST_BYTES_MAX = WRITE_BYTES_MAX + 4096
PAGES_MAX = 256

# Flags of INIT: reads need not wait for each other; writes of more than a page.
_ASYNC_READ, _BIG_WRITES, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 22
_KEEP_CACHE = 1 << 1  # All changes go through the kernel, so its caches stay valid.
FATTR_MODE, FATTR_SIZE = 1 << 0, 1 << 3
_VALID_S = 86_400
_BLOCK_BYTES = 4096

_IN_HEADER = struct.Struct("<IIQQIIII")
_OUT_HEADER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_DIRENT = struct.Struct("<QQII")
assert _IN_HEADER.size == 40 and _ATTR.size == 88 and _INIT_OUT.size == 64


class Opcode(enum.IntEnum):
    """The requests that the server answers."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45


class Request(NamedTuple):
    """One request: `node` is the file or folder it is about, `body` what comes behind the header.

    `body` is gone once the next request is read.
    """

    opcode: int
    unique: int
    node: int
    body: memoryview


def decode(frame: memoryview) -> Request:
    """Decode the request that one read of /dev/fuse returned."""
    _size, opcode, unique, node, *_who = _IN_HEADER.unpack_from(frame)
    return Request(opcode, unique, node, frame[_IN_HEADER.size :])


def encode_reply(unique: int, body: bytes = b"", code: int = 0) -> bytes:
    """The reply to a request: `body`, or the error `code`."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), -code, unique) + body


def init_reply() -> bytes:
    """What the server can do."""
    flags = _ASYNC_READ | _BIG_WRITES | _MAX_PAGES
    return _INIT_OUT.pack(MAJOR, MINOR, 1 << 20, flags, 64, 48, WRITE_BYTES_MAX, 1, PAGES_MAX, 0, 0)


def attributes(node: int, mode: int, size: int) -> bytes:
    """A file's attributes, which stay valid."""
    blocks = -(-size // 512)
    return struct.pack("<QII", _VALID_S, 0, 0) + _attr(node, mode, size, blocks)


def entry(node: int, mode: int, size: int) -> bytes:
    """What a name stands for."""
    head = struct.pack("<QQQQII", node, 0, _VALID_S, _VALID_S, 0, 0)
    return head + _attr(node, mode, size, -(-size // 512))


def _attr(node: int, mode: int, size: int, blocks: int) -> bytes:
    return _ATTR.pack(node, size, blocks, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, _BLOCK_BYTES, 0)


def opened(handle: int) -> bytes:
    """A file is open."""
    return struct.pack("<QII", handle, _KEEP_CACHE, 0)


def written(count: int) -> bytes:
    """So much was written."""
    return struct.pack("<II", count, 0)


def space(capacity_bytes: int, free_bytes: int) -> bytes:
    """How much there is, and how much is left."""
    total, free = capacity_bytes // _BLOCK_BYTES, free_bytes // _BLOCK_BYTES
    return struct.pack("<QQQQQIIII24x", total, free, free, 1 << 20, 1 << 20, _BLOCK_BYTES, 255,
                       _BLOCK_BYTES, 0)  # fmt: skip


def directory(names: list[tuple[str, int, int]], offset: int, bytes_max: int) -> bytes:
    """As many of the (name, node, mode) from place `offset` on as fit."""
    parts, total = [], 0
    for i, (name, node, mode) in enumerate(names[offset:], offset + 1):
        text = name.encode()
        record = _DIRENT.pack(node, i, len(text), mode >> 12) + text
        record += bytes(-len(record) % 8)
        if total + len(record) > bytes_max:
            break
        parts.append(record)
        total += len(record)
    return b"".join(parts)


class SetAttr(NamedTuple):
    """Changes of a file's attributes: those whose bit is in `valid`."""

    valid: int
    size: int
    mode: int


def set_attr(body: memoryview) -> SetAttr:
    """SETATTR's body."""
    fields = struct.unpack_from("<IIQQQQQQIIII", body)
    return SetAttr(valid=fields[0], size=fields[3], mode=fields[11])


def name_at(body: memoryview, skip: int = 0) -> str:
    """The name that stands behind `skip` bytes."""
    return bytes(body[skip:]).split(b"\0", 1)[0].decode()


def two_names_at(body: memoryview, skip: int) -> tuple[str, str]:
    """The two names that stand behind `skip` bytes."""
    first, second, *_ = bytes(body[skip:]).split(b"\0")
    return first.decode(), second.decode()


def numbers(body: memoryview, layout: str) -> tuple[int, ...]:
    """The whole numbers at the start of a body, by `struct` format characters."""
    return struct.unpack_from("<" + layout, body)
