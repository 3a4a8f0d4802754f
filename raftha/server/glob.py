"""Redis's glob patterns, for SCAN's MATCH: `*`, `?`, `[a-z]`, `[^a]`, and a backslash to quote one.

`fnmatch` doesn't fit: it has no quoting, spells `[!a]`, and compiles the client's pattern to a
regular expression that may backtrack for very long. This takes at most len(pattern) * len(text)
steps.
"""

from __future__ import annotations

_STAR, _ANY, _OPEN, _CLOSE, _ESCAPE = b"*?[]\\"


def glob_matches(pattern: bytes, text: bytes) -> bool:
    """True if `pattern` matches all of `text`."""
    position = at = 0
    star, star_at = -1, 0  # Where the last star was, and what it was last tried up to.
    while at < len(text):
        if position < len(pattern) and pattern[position] == _STAR:
            star, star_at = position, at
            position += 1
            continue
        end = _match_one(pattern, position, text[at]) if position < len(pattern) else 0
        if end:
            position, at = end, at + 1
        elif star >= 0:
            # Only the last star needs a retry: whatever an earlier one took, it could as well.
            star_at += 1
            position, at = star + 1, star_at
        else:
            return False
    return not pattern[position:].strip(b"*")


def _match_one(pattern: bytes, position: int, byte: int) -> int:
    """Match `byte` to the element at `position`: where the next one begins, 0 if it doesn't fit."""
    kind = pattern[position]
    if kind == _OPEN:
        return _match_class(pattern, position + 1, byte)
    if kind == _ESCAPE and position + 1 < len(pattern):
        position += 1
        kind, is_any = pattern[position], False
    else:
        is_any = kind == _ANY
    return position + 1 if is_any or kind == byte else 0


def _match_class(pattern: bytes, position: int, byte: int) -> int:
    is_negated = pattern[position : position + 1] == b"^"
    position += is_negated
    is_in = False
    # As in Redis, a class that is never closed ends with the pattern.
    while position < len(pattern) and pattern[position] != _CLOSE:
        is_quoted = pattern[position] == _ESCAPE and position + 1 < len(pattern)
        position += is_quoted
        low = high = pattern[position]
        is_range = not is_quoted and pattern[position + 1 : position + 2] == b"-"
        if is_range and position + 2 < len(pattern):
            low, high = sorted((low, pattern[position + 2]))
            position += 2
        is_in = is_in or low <= byte <= high
        position += 1
    return position + 1 if is_in != is_negated else 0
