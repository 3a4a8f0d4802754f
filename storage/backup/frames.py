"""Frames: how the bytes of an object are cut, compressed, and sealed.

Theory of operation. An object is a header and frames, all numbers little-endian:

    offset  size  header
         0     4  magic `rfbk`
         4     1  version, 1
         5     1  kind: 1 run, 2 manifest, 3 log segment, 4 other
         6     1  cipher: 0 none, 1 AES-256-GCM
         7     1  0
         8    16  id of the data key; zeros without encryption
        24    16  salt; zeros without encryption

    offset  size  frame
         0     4  length of payload and seal
         4     1  flags: 1 last frame of the object, 2 payload is not compressed
         5     n  payload: at most 256 KiB before compression by zstd; encrypted if there is a key
     5 + n  16/4  seal

The seal of frame `number` (from 0 on) covers the payload and its place: SHA-256 of header and
object's name, the number (8 bytes), and the flags. With a key it is the 16-byte tag of AES-256-GCM,
whose nonce is the number (12 bytes). Without one it is the CRC-32 of place and payload, which finds
rot and misplaced frames, but no malice. The last frame is flagged, and nothing follows it. So a
changed bit, an exchanged, missing, repeated or moved frame, and an object that is cut off or
renamed are all BackupDamaged. The manifest has the SHA-256 of each object besides.

A frame can be read alone (`open_frame`) given its number and where it begins. Memory is bounded by
a frame: a frame that claims to grow beyond 256 KiB is refused before it is decompressed.

Frames of one object can be sealed and opened by several threads at once.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import zstandard

from raftha.errors import BackupDamaged
from raftha.extras import extra
from raftha.storage.backup.crypto import (
    ID_BYTES,
    NONCE_BYTES,
    SALT_BYTES,
    TAG_BYTES,
    DataKey,
    KeyRing,
    aes_gcm,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

RUN, MANIFEST, SEGMENT, OTHER = 1, 2, 3, 4
"""The kinds of objects."""
FRAME_RAW_MAX = 256 << 10
"""How much data a frame holds. Larger frames would keep Python's lock for milliseconds."""
LEVELS = (1, 2, 3, 5, 7, 9, 12, 15, 19)
"""zstd's level for each of our levels, 1 to 9; level 0 doesn't compress."""
VERSION = 1
_MAGIC = b"rfbk"
_HEADER = struct.Struct(f"<4sBBBx{ID_BYTES}s{SALT_BYTES}s")
_FRAME = struct.Struct("<IB")
_CRC = struct.Struct("<I")
_PLACE = struct.Struct("<32sQB")
HEADER_BYTES = _HEADER.size
FRAME_HEAD_BYTES = _FRAME.size
FRAME_BYTES_MAX = FRAME_HEAD_BYTES + FRAME_RAW_MAX + TAG_BYTES
_LAST, _STORED = 1, 2
_NO_CIPHER, _AES_GCM = 0, 1
_PLAIN = bytes(ID_BYTES)
_WINDOW_BYTES_MAX = 1 << 20
_WINDOW_LOG, _TABLE_LOG_MAX = 18, 17
_own = threading.local()
"""Each thread's compressors and decompressor, since they are not made for sharing."""


class Frame(NamedTuple):
    """An opened frame."""

    raw: bytes
    is_last: bool


class ObjectSeal:
    """What all frames of one object share: its header, and the key and place they are bound to."""

    def __init__(self, header: bytes, object_name: str, key: DataKey | None) -> None:
        self.header = header
        self.object_name = object_name
        self._place = sha256(header + object_name.encode()).digest()
        self._cipher: AESGCM | None = None
        if key is not None:
            self._cipher = aes_gcm(key.object_key(header[-SALT_BYTES:]))

    @classmethod
    def new(
        cls, kind: int, object_name: str, key: DataKey | None, *, salt: bytes | None = None
    ) -> ObjectSeal:
        """Begin an object. The salt is random unless a simulation gives one, never used before."""
        if key is None:
            header = _HEADER.pack(_MAGIC, VERSION, kind, _NO_CIPHER, _PLAIN, bytes(SALT_BYTES))
        else:
            salt = os.urandom(SALT_BYTES) if salt is None else salt
            key_id = bytes.fromhex(key.key_id)
            header = _HEADER.pack(_MAGIC, VERSION, kind, _AES_GCM, key_id, salt)
        return cls(header, object_name, key)

    @classmethod
    def read(
        cls, header: bytes | memoryview, kind: int, object_name: str, keys: KeyRing
    ) -> ObjectSeal:
        """Begin to read an object. BackupDamaged; KeyMissing if `keys` lack its data key."""
        head = bytes(header[:HEADER_BYTES])
        if len(head) < HEADER_BYTES:
            raise _damaged(object_name, "it is cut off within its header")
        magic, version, found_kind, cipher, key_id, salt = _HEADER.unpack(head)
        if magic != _MAGIC or head[7]:
            raise _damaged(object_name, "it is not an object of a repository")
        if version != VERSION:
            raise _damaged(object_name, f"its format is {version}; this raftha reads {VERSION}")
        if found_kind != kind:
            raise _damaged(object_name, f"its kind is {found_kind}, expected {kind}")
        if cipher == _AES_GCM:
            return cls(head, object_name, keys.find(key_id.hex()))
        if cipher != _NO_CIPHER or key_id != _PLAIN or salt != bytes(SALT_BYTES):
            raise _damaged(object_name, "its header is wrong")
        if len(keys):  # Else a bucket's owner could replace an object by one that has no key.
            raise _damaged(object_name, "it is not encrypted, but the repository is")
        return cls(head, object_name, None)

    def close(self, number: int, flags: int, payload: bytes | memoryview) -> bytes:
        """Return the payload, encrypted if there is a key, and its seal."""
        place = _PLACE.pack(self._place, number, flags)
        if self._cipher is not None:
            return self._cipher.encrypt(_nonce(number), payload, place)
        return b"".join((payload, _checksum(payload, place)))

    def open(self, number: int, flags: int, sealed: memoryview) -> bytes | memoryview:
        """Return the payload; BackupDamaged unless it was sealed for this place."""
        place = _PLACE.pack(self._place, number, flags)
        if self._cipher is None:
            payload, seal = sealed[: -_CRC.size], sealed[-_CRC.size :]
            if _checksum(payload, place) != seal:
                raise _damaged(self.object_name, f"frame {number} is not what was written")
            return payload
        with extra("backup"):
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415
        try:
            return self._cipher.decrypt(_nonce(number), sealed, place)
        except InvalidTag:
            raise _damaged(
                self.object_name, f"frame {number} is not what was sealed with this key"
            ) from None


def seal_frame(
    seal: ObjectSeal, number: int, raw: bytes | memoryview, *, is_last: bool, level: int
) -> bytes:
    """Return a whole frame: `raw` compressed by our level 0 to 9, sealed as frame `number`."""
    assert len(raw) <= FRAME_RAW_MAX, "a frame holds at most FRAME_RAW_MAX bytes"
    flags = _LAST if is_last else 0
    payload: bytes | memoryview = raw
    if level and raw:
        payload = _compressor(level).compress(raw)
    if not level or len(payload) >= len(raw):
        payload = raw
        flags |= _STORED
    sealed = seal.close(number, flags, payload)
    return _FRAME.pack(len(sealed), flags) + sealed


def frame_size(data: bytes | memoryview, object_name: str) -> int:
    """Return the size of the frame that begins with `data`; BackupDamaged if it can't be."""
    if len(data) < FRAME_HEAD_BYTES:
        raise _damaged(object_name, "it is cut off within a frame")
    size = FRAME_HEAD_BYTES + int(_FRAME.unpack_from(data)[0])
    if not FRAME_HEAD_BYTES + _CRC.size <= size <= FRAME_BYTES_MAX:
        raise _damaged(object_name, "a frame's length is impossible")
    return size


def open_frame(seal: ObjectSeal, number: int, frame: bytes | memoryview) -> Frame:
    """Read one whole frame by its number. BackupDamaged if it is any other."""
    name = seal.object_name
    if frame_size(frame, name) != len(frame):
        raise _damaged(name, "it is cut off within a frame")
    flags = int(_FRAME.unpack_from(frame)[1])
    if flags & ~(_LAST | _STORED):
        raise _damaged(name, f"frame {number} has unknown flags")
    payload = seal.open(number, flags, memoryview(frame)[FRAME_HEAD_BYTES:])
    if flags & _STORED:
        return Frame(bytes(payload), bool(flags & _LAST))
    return Frame(_decompress(payload, name, number), bool(flags & _LAST))


def read_frame_at(
    header: bytes | memoryview,
    frame: bytes | memoryview,
    number: int,
    *,
    kind: int,
    object_name: str,
    keys: KeyRing,
) -> bytes:
    """Read one frame, given the object's first HEADER_BYTES bytes and the frame's own."""
    return open_frame(ObjectSeal.read(header, kind, object_name, keys), number, frame).raw


def read_frames(
    data: bytes | memoryview, kind: int, object_name: str, keys: KeyRing
) -> Iterator[bytes]:
    """Yield the content of each frame of a whole object. BackupDamaged; KeyMissing."""
    view = memoryview(data)
    seal = ObjectSeal.read(view, kind, object_name, keys)
    offset = HEADER_BYTES
    number = 0
    is_last = False
    while not is_last:
        size = frame_size(view[offset:], object_name)
        raw, is_last = open_frame(seal, number, view[offset : offset + size])
        offset += size
        number += 1
        if is_last and offset != len(view):
            raise _damaged(object_name, "something follows its last frame")
        yield raw


def read_whole(
    data: bytes | memoryview,
    kind: int,
    object_name: str,
    keys: KeyRing,
    *,
    size_max: int | None = None,
) -> bytes:
    """Return the content of all frames together. BackupDamaged if it is more than `size_max`."""
    parts: list[bytes] = []
    size = 0
    for raw in read_frames(data, kind, object_name, keys):
        parts.append(raw)
        size += len(raw)
        if size_max is not None and size > size_max:
            raise _damaged(object_name, f"its content is more than {size_max} bytes")
    return b"".join(parts)


class FrameWriter:
    """Writes an object's frames one after the other; the caller joins what `add` returns."""

    def __init__(
        self,
        kind: int,
        object_name: str,
        key: DataKey | None,
        level: int,
        *,
        salt: bytes | None = None,
    ) -> None:
        self._seal = ObjectSeal.new(kind, object_name, key, salt=salt)
        self._level = level
        self._number = 0
        self._pending = bytearray()
        self._begun = False

    def add(self, raw: bytes | memoryview) -> bytes:
        """Take more data; return the frames that are full, the header before the first."""
        parts = [self._begin()]
        self._pending += raw
        while len(self._pending) > FRAME_RAW_MAX:
            parts.append(self._next(bytes(self._pending[:FRAME_RAW_MAX]), is_last=False))
            del self._pending[:FRAME_RAW_MAX]
        return b"".join(parts)

    def finish(self) -> bytes:
        """Return the last frame, which may be empty."""
        return self._begin() + self._next(bytes(self._pending), is_last=True)

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._seal.header

    def _next(self, raw: bytes, *, is_last: bool) -> bytes:
        frame = seal_frame(self._seal, self._number, raw, is_last=is_last, level=self._level)
        self._number += 1
        return frame


def write_whole(
    raw: bytes | memoryview,
    kind: int,
    object_name: str,
    key: DataKey | None,
    level: int,
    *,
    salt: bytes | None = None,
) -> bytes:
    """Return the object that holds `raw`."""
    writer = FrameWriter(kind, object_name, key, level, salt=salt)
    return writer.add(raw) + writer.finish()


def _nonce(number: int) -> bytes:
    return number.to_bytes(NONCE_BYTES, "little")


def _checksum(payload: bytes | memoryview, place: bytes) -> bytes:
    return _CRC.pack(zlib.crc32(payload, zlib.crc32(place)))


def _compressor(level: int) -> zstandard.ZstdCompressor:
    compressors: dict[int, zstandard.ZstdCompressor] = _own.__dict__.setdefault("compressors", {})
    if level not in compressors:
        compressors[level] = zstandard.ZstdCompressor(compression_params=_parameters(level))
    return compressors[level]


def _parameters(level: int) -> zstandard.ZstdCompressionParameters:
    """Return zstd's parameters of a level for large data, with tables that fit a frame.

    Those that it chooses for 256 KiB look for shorter matches, which takes up to twice as long, and
    makes values with hexadecimal digits larger by a tenth.
    """
    chosen = zstandard.ZstdCompressionParameters.from_level(LEVELS[level - 1], source_size=1 << 30)
    return zstandard.ZstdCompressionParameters.from_level(
        LEVELS[level - 1],
        source_size=1 << 30,
        window_log=_WINDOW_LOG,
        hash_log=min(chosen.hash_log, _TABLE_LOG_MAX),
        chain_log=min(chosen.chain_log, _TABLE_LOG_MAX),
        write_checksum=False,
        write_content_size=True,
    )


def _decompress(payload: bytes | memoryview, name: str, number: int) -> bytes:
    if "decompressor" not in _own.__dict__:
        _own.decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
    decompressor: zstandard.ZstdDecompressor = _own.decompressor
    try:
        # decompress() reserves what the payload claims, so the claim is looked at first.
        claimed = zstandard.frame_content_size(payload)
        if not 0 < claimed <= FRAME_RAW_MAX:
            raise _damaged(name, f"frame {number} claims a content of {claimed} bytes")
        raw = decompressor.decompress(payload, max_output_size=FRAME_RAW_MAX)
    except zstandard.ZstdError as error:
        raise _damaged(name, f"frame {number} can't be decompressed: {error}") from error
    if len(raw) != claimed:
        raise _damaged(name, f"frame {number} has not the content that it claims")
    return raw


def _damaged(object_name: str, message: str) -> BackupDamaged:
    return BackupDamaged(message, object_name=object_name)
