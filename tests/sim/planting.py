"""Putting bugs into the real code, and taking them out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Patch = tuple[Any, str, Any]
"""What has an attribute, its name, and what is to take its place."""

Bug = Callable[[], list[Patch]]


@contextmanager
def patched(patches: list[Patch]) -> Iterator[None]:
    """Have these in place."""
    originals = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in patches]
    try:
        for owner, attribute, replacement in patches:
            # A property must be replaced on its class, found without running it.
            setattr(owner, attribute, replacement)
        yield
    finally:
        for owner, attribute, original in originals:
            setattr(owner, attribute, original)
