"""The record of a value in LMDB: flags, an optional expiry time, the value, and a checksum.

Theory of operation. LMDB has no checksums, so a flipped bit in its file would be read as data. Each
value therefore has a checksum over its key and all of its record. A record that stands under
another key, or in part belongs to another value, fails too.

    offset  size  field
         0     1  flags      bit 0: an expiry time follows; the other bits are zero
         1     8  expires_us microseconds since 1970 UTC, little endian; only if bit 0 is set
         -     -  value
        -4     4  checksum   CRC-32C of key, flags, expiry time and value, little endian; without
                             flags, XOR `PLAIN`

The checksum stands last, because the CRC of data that is followed by its own CRC is a constant: a
check takes no slices. `PLAIN` makes that constant 0 for a record without flags. 0 is also what a
CRC begins with, so the keys and records of many pairs, one after the other, have the CRC 0 as well:
one call checks a piece of a scan (`are_plain`), which costs half of a call for each pair. If a pair
is damaged, the rest of the piece only shifts its error, and never removes it; errors of several
pairs cancel each other with the chance that any error has to pass a CRC of 32 bits.

Nothing sets an expiry time yet. The field has its place so that it needs no other format.
"""

from __future__ import annotations

from collections.abc import Iterable

from google_crc32c import extend
from google_crc32c import value as crc32c

from raftha.storage.state.blocks import LENGTH, SHORT

EXPIRES = 1
PLAIN = 0x9BE09BAB
"""The four bytes whose CRC-32C is 0, as a number."""
WITH_FLAGS = 0x48674BC7
"""The CRC-32C of a key and a sound record that has flags."""
OVERHEAD_BYTES = 5
"""Flags and checksum."""
JOINED = 1024
_EXPIRES_BYTES = 8


def pack_record(key: bytes, value: bytes, expires_us: int | None = None) -> bytes:
    """Return the record of `value` under `key`."""
    if expires_us is None:
        body = b"\0" + value
        # In one piece for small values: a call takes longer than a copy.
        crc: int = crc32c(key + body) if len(body) < JOINED else extend(crc32c(key), body)
        checksum = crc ^ PLAIN
    else:
        assert expires_us >= 0, "an expiry time is a time after 1970"
        body = bytes((EXPIRES,)) + expires_us.to_bytes(_EXPIRES_BYTES, "little") + value
        checksum = extend(crc32c(key), body)
    return body + checksum.to_bytes(4, "little")


def pack_records(pairs: Iterable[tuple[bytes, bytes | None]]) -> list[tuple[bytes, bytes]]:
    """Return keys with the records of their values, but for those without a value."""
    pack = LENGTH.pack
    return [
        (key, (body := b"\0" + value) + pack(crc32c(key + body) ^ PLAIN))
        for key, value in pairs
        if value is not None
    ]


def unpack_record(key: bytes, record: bytes) -> bytes | None:
    """Return the value in `record`; None if the record is not what was written under `key`."""
    if len(record) < OVERHEAD_BYTES:
        return None
    found, flags = extend(crc32c(key), record), record[0]
    if not flags:
        return record[1:-4] if not found else None
    if found != WITH_FLAGS or flags != EXPIRES or len(record) < OVERHEAD_BYTES + _EXPIRES_BYTES:
        return None
    return record[1 + _EXPIRES_BYTES : -4]


def encode_plain(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return keys and values as in a block, given keys and sound records without flags."""
    parts: list[bytes] = []
    short, limit, pack = SHORT, len(SHORT), LENGTH.pack
    for key, record in pairs:
        size = len(record) - OVERHEAD_BYTES
        parts += (
            short[len(key)],
            key,
            short[size] if size < limit else pack(size),
            record[1:-4],
        )
    return b"".join(parts)


def are_plain(joined: bytes) -> bool:
    """Whether `joined` has only keys that are followed by sound records without flags."""
    return not crc32c(joined)
