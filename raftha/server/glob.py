"""Redis's glob patterns, for SCAN's MATCH: `*`, `?`, `[a-z]`, `[^a]`, and a backslash to quote one.

`fnmatch` doesn't fit: it has no quoting, spells `[!a]`, and compiles the client's pattern to a
regular expression that may backtrack for very long.

Theory of operation. A pattern is compiled once, to a nondeterministic automaton whose set of states
is one integer: bit i says that the elements before i have matched so far. A byte of text moves all
states at once, by a mask of the elements that the byte matches; a star keeps the state before it.
So matching takes one step a byte, whatever the pattern, and `PATTERN_BYTES_MAX` bounds a step.
"""

from __future__ import annotations

from raftha.client.resp import ReplyError

PATTERN_BYTES_MAX = 1024
_STAR, _ANY, _OPEN, _CLOSE, _ESCAPE = b"*?[]\\"
_ALL = frozenset(range(256))


class Glob:
    """A compiled pattern."""

    def __init__(self, pattern: bytes) -> None:
        """ReplyError if the pattern is too long."""
        if len(pattern) > PATTERN_BYTES_MAX:
            raise ReplyError(
                f"ERR a pattern may have at most {PATTERN_BYTES_MAX} bytes, got {len(pattern)}"
            )
        self._masks = [0] * 256
        self._stars = 0
        bit = 1
        position = 0
        while position < len(pattern):
            if pattern[position] == _STAR:
                self._stars |= bit
                position += 1
                continue
            fits, position = _parse_element(pattern, position)
            for byte in fits:
                self._masks[byte] |= bit
            bit <<= 1
        self._end = bit

    def matches(self, text: bytes) -> bool:
        """True if the pattern matches all of `text`."""
        masks, stars, end = self._masks, self._stars, self._end
        is_end_open = bool(stars & end)
        states = 1
        for byte in text:
            states = ((states & masks[byte]) << 1) | (states & stars)
            if not states:
                return False
            if is_end_open and states & end:
                return True
        return bool(states & end)


def _parse_element(pattern: bytes, position: int) -> tuple[frozenset[int], int]:
    """The bytes that the element at `position` matches, and where the next one begins."""
    kind = pattern[position]
    if kind == _OPEN:
        return _parse_class(pattern, position + 1)
    if kind == _ANY:
        return _ALL, position + 1
    if kind == _ESCAPE and position + 1 < len(pattern):
        position += 1
    return frozenset((pattern[position],)), position + 1


def _parse_class(pattern: bytes, position: int) -> tuple[frozenset[int], int]:
    is_negated = pattern[position : position + 1] == b"^"
    position += is_negated
    fits: set[int] = set()
    # As in Redis, a class that is never closed ends with the pattern.
    while position < len(pattern) and pattern[position] != _CLOSE:
        is_quoted = pattern[position] == _ESCAPE and position + 1 < len(pattern)
        position += is_quoted
        low = high = pattern[position]
        is_range = not is_quoted and pattern[position + 1 : position + 2] == b"-"
        if is_range and position + 2 < len(pattern):
            low, high = sorted((low, pattern[position + 2]))
            position += 2
        fits.update(range(low, high + 1))
        position += 1
    return _ALL - fits if is_negated else frozenset(fits), position + 1
