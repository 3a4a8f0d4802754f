"""Tables of asserts: a row corrupts one thing, and names the property that is broken then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Row = tuple[Callable[[], object], str]
"""What is done, and what the assert says."""


def check(rows: dict[str, Row]) -> pytest.MarkDecorator:
    """Run a test for each row."""
    return pytest.mark.parametrize(("act", "says"), list(rows.values()), ids=list(rows))


def expect(act: Callable[[], object], says: str) -> None:
    """Do it, and see that an assert says this."""
    with pytest.raises(AssertionError) as caught:
        act()
    assert str(caught.value).splitlines()[0] == says
