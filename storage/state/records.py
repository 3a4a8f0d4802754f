"""The record of a value in LMDB: a checksum, flags, an optional expiry time, and the value.

Theory of operation. LMDB has no checksums, so a flipped bit in its file would be read as data. Each
value therefore has a checksum over its key and all of its record. A record that stands under
another key, or in part belongs to another value, fails too.

    offset  size  field
         0     4  CRC-32C    of key, flags, expiry time and value; little endian
         4     1  flags      bit 0: an expiry time follows; the other bits are zero
         5     8  expires_us microseconds since 1970 UTC, little endian; only if bit 0 is set
         -     -  value

Nothing sets an expiry time yet. The field has its place so that it needs no other format.
"""

from __future__ import annotations

from google_crc32c import extend
from google_crc32c import value as crc32c

HEADER_BYTES = 5
EXPIRES = 1
_PLAIN = b"\0"
_EXPIRES_BYTES = 8


def pack_record(key: bytes, value: bytes, expires_us: int | None = None) -> bytes:
    """Return the record of `value` under `key`."""
    body = _PLAIN + value
    if expires_us is not None:
        assert expires_us >= 0, "an expiry time is a time after 1970"
        body = bytes((EXPIRES,)) + expires_us.to_bytes(_EXPIRES_BYTES, "little") + value
    checksum: int = extend(crc32c(key), body)
    return checksum.to_bytes(4, "little") + body


def unpack_record(key: bytes, record: bytes) -> bytes | None:
    """Return the value in `record`; None if the record is not what was written under `key`."""
    body = record[4:]
    if extend(crc32c(key), body) != int.from_bytes(record[:4], "little") or len(body) < 1:
        return None
    flags = body[0]
    if not flags:
        return body[1:]
    if flags != EXPIRES or len(body) <= _EXPIRES_BYTES:
        return None
    return body[1 + _EXPIRES_BYTES :]
