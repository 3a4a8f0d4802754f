"""Tables of asserts: a row corrupts one thing, and names the property that this breaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Row = tuple[Callable[[], object], str]
"""A corruption, and the message of the assert."""


def check(rows: dict[str, Row]) -> pytest.MarkDecorator:
    """Run a test for each row."""
    return pytest.mark.parametrize(("act", "says"), list(rows.values()), ids=list(rows))


def expect(act: Callable[[], object], says: str) -> None:
    """Check that calling it fails an assert with this message."""
    with pytest.raises(AssertionError) as caught:
        act()
    assert str(caught.value).splitlines()[0] == says
