"""The records that `raftha demo` loads: the Unicode character database, or the rows of a file."""

from __future__ import annotations

import csv
import json
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from raftha.config import MIB
from raftha.errors import InvalidRequest

Record = tuple[bytes, bytes]
"""A key and a value."""
ROW_BYTES_MAX = MIB


def unicode_records() -> list[Record]:
    """The Unicode character database of this Python: a record for every character with a name."""
    records = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        name = unicodedata.name(character, "")
        if name:
            value = {
                "name": name,
                "category": unicodedata.category(character),
                "combining": unicodedata.combining(character),
                "bidirectional": unicodedata.bidirectional(character),
                "east_asian_width": unicodedata.east_asian_width(character),
                "mirrored": unicodedata.mirrored(character),
                "decimal": unicodedata.decimal(character, None),
                "digit": unicodedata.digit(character, None),
                "numeric": unicodedata.numeric(character, None),
                "decomposition": unicodedata.decomposition(character),
            }
            records.append((b"U+%04X" % code, json.dumps(value).encode()))
    return records


def load_records(source: Path) -> list[Record]:
    """The rows of a file as records: the key is the row's number, from 1, the value the row.

    A .txt file's rows are its lines, a .jsonl file's its documents as they stand, a .csv file's
    become JSON arrays of their cells. InvalidRequest if the file is anything else.
    """
    readers = {".txt": _text_rows, ".jsonl": _json_rows, ".csv": _csv_rows}
    if source.suffix.lower() not in readers:
        raise InvalidRequest(
            f"{source}: the demo can't read this kind of file", hint="known: .csv .jsonl .txt"
        )
    try:
        rows = list(readers[source.suffix.lower()](source))
    except OSError as error:
        raise InvalidRequest(f"can't read {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{source} is not UTF-8: {error}") from error
    if not rows:
        raise InvalidRequest(f"{source} has no rows")
    width = len(str(len(rows)))
    for number, row in enumerate(rows, 1):
        if len(row) > ROW_BYTES_MAX:
            raise InvalidRequest(f"{source}, row {number}: {len(row)} bytes, limit {ROW_BYTES_MAX}")
    return [(b"%0*d" % (width, number), row) for number, row in enumerate(rows, 1)]


def _text_rows(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        for line in file:
            yield line.removesuffix(b"\n").removesuffix(b"\r")


def _json_rows(source: Path) -> Iterator[bytes]:
    for number, line in enumerate(_text_rows(source), 1):
        if line.strip():
            try:
                json.loads(line)
            except ValueError as error:
                raise InvalidRequest(f"{source}, line {number} is not JSON: {error}") from error
            yield line


def _csv_rows(source: Path) -> Iterator[bytes]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            for row in rows:
                yield json.dumps(row, ensure_ascii=False).encode()
        except csv.Error as error:
            raise InvalidRequest(f"{source}, line {rows.line_num}: {error}") from error
