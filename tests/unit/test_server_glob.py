"""Globs as Redis has them."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.client.resp import ReplyError
from raftha.server.glob import PATTERN_BYTES_MAX, Glob


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (b"*", b"", True),
        (b"", b"", True),
        (b"", b"a", False),
        (b"?", b"", False),
        (b"h?llo", b"hello", True),
        (b"h*llo", b"heeeello", True),
        (b"h[ae]llo", b"hallo", True),
        (b"h[ae]llo", b"hillo", False),
        (b"h[^e]llo", b"hello", False),
        (b"h[^e]llo", b"hallo", True),
        (b"h[c-a]llo", b"hbllo", True),
        (b"a[\\]-]c", b"a]c", True),
        (b"\\*", b"*", True),
        (b"\\*", b"a", False),
        (b"a\\", b"a\\", True),
        (b"[a", b"a", True),
        (b"*a*b*c*", b"xxaxxbxxc", True),
        (b"*a*b*c*", b"xxaxxcxxb", False),
        (b"*\xff", b"a\xff", True),
    ],
)
def test_glob_table(pattern: bytes, text: bytes, expected: bool) -> None:
    assert Glob(pattern).matches(text) is expected


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=10))
def test_stars_and_question_marks_mean_what_fnmatch_says(pattern: str, text: str) -> None:
    assert Glob(pattern.encode()).matches(text.encode()) == fnmatch.fnmatchcase(text, pattern)


@pytest.mark.parametrize("pattern", [b"a*" * 500 + b"b", b"*[" + b"b" * 1000, b"?" * 1000])
def test_a_hostile_pattern_takes_a_step_a_byte(pattern: bytes) -> None:
    compiled = Glob(pattern)
    started = time.monotonic()
    for _ in range(100):
        assert not compiled.matches(b"a" * 511)
    assert time.monotonic() - started < 1


def test_a_pattern_that_is_too_long_is_refused() -> None:
    Glob(b"a" * PATTERN_BYTES_MAX)
    with pytest.raises(ReplyError, match="at most 1024 bytes, got 1025"):
        Glob(b"a" * (PATTERN_BYTES_MAX + 1))
