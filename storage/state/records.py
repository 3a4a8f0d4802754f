"""The record of a value in LMDB: flags, an optional expiry time, the value, and a checksum.

Theory of operation. LMDB has no checksums, so a flipped bit in its file would be read as data. Each
value therefore has a checksum over its key and all of its record. A record that stands under
another key, or in part belongs to another value, fails too.

    offset  size  field
         0     1  flags      bit 0: an expiry time follows; the other bits are zero
         1     8  expires_us microseconds since 1970 UTC, little endian; only if bit 0 is set
         -     -  value
        -4     4  CRC-32C    of key, flags, expiry time and value; little endian

The checksum stands last, because the CRC of data that is followed by its own CRC is a constant
(`SOUND`): a check takes no slices, which counts in scans.

Nothing sets an expiry time yet. The field has its place so that it needs no other format.
"""

from __future__ import annotations

from google_crc32c import extend
from google_crc32c import value as crc32c

EXPIRES = 1
SOUND = 0x48674BC7
"""The CRC-32C of a key and a sound record of it."""
OVERHEAD_BYTES = 5
"""Flags and checksum."""
_EXPIRES_BYTES = 8


def pack_record(key: bytes, value: bytes, expires_us: int | None = None) -> bytes:
    """Return the record of `value` under `key`."""
    body = b"\0" + value
    if expires_us is not None:
        assert expires_us >= 0, "an expiry time is a time after 1970"
        body = bytes((EXPIRES,)) + expires_us.to_bytes(_EXPIRES_BYTES, "little") + value
    checksum: int = extend(crc32c(key), body)
    return body + checksum.to_bytes(4, "little")


def unpack_record(key: bytes, record: bytes) -> bytes | None:
    """Return the value in `record`; None if the record is not what was written under `key`."""
    if len(record) < OVERHEAD_BYTES or extend(crc32c(key), record) != SOUND:
        return None
    flags = record[0]
    if not flags:
        return record[1:-4]
    if flags != EXPIRES or len(record) < OVERHEAD_BYTES + _EXPIRES_BYTES:
        return None
    return record[1 + _EXPIRES_BYTES : -4]
