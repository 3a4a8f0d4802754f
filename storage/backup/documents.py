"""Small JSON documents that come from a bucket: read within bounds, one checked field at a time.

Whatever is wrong with one is a ValueError, as anyone who can write to a bucket can change them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DOCUMENT_BYTES_MAX = 4096


def write_json(document: Mapping[str, Any]) -> bytes:
    """Return the document's bytes: the same for the same document."""
    return json.dumps(document, indent=1).encode() + b"\n"


def parse_json(data: bytes | memoryview, bytes_max: int = DOCUMENT_BYTES_MAX) -> dict[str, Any]:
    """Read a small JSON object from elsewhere; ValueError if it isn't one."""
    if len(data) > bytes_max:
        raise ValueError(f"more than {bytes_max} bytes")
    try:
        found = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if type(found) is not dict:
        raise ValueError("not a JSON object")
    return found


def hex_of(found: Mapping[str, Any], name: str, size: int) -> bytes:
    """Return a field of `size` bytes, written as lower-case hex digits; ValueError otherwise."""
    text = found.get(name)
    if type(text) is not str or len(text) != 2 * size:
        raise ValueError(f"{name} is not {size} bytes as hex digits")
    value = bytes.fromhex(text)
    if value.hex() != text:
        raise ValueError(f"{name} is not {size} bytes as hex digits")
    return value


def number_of(found: Mapping[str, Any], name: str, least: int, most: int) -> int:
    """Return a whole number within bounds; ValueError otherwise."""
    number = found.get(name)
    if type(number) is not int or not least <= number <= most:
        raise ValueError(f"{name} is not a whole number from {least} to {most}")
    return number


def text_of(found: Mapping[str, Any], name: str, chars_max: int = 200) -> str:
    """Return a short text; ValueError otherwise."""
    text = found.get(name)
    if type(text) is not str or len(text) > chars_max:
        raise ValueError(f"{name} is not a text of at most {chars_max} characters")
    return text
