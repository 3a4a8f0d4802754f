"""Counts the requests to a destination: what a bucket's owner pays for, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from raftha.errors import RepositoryError
from raftha.storage.backup.destination import Destination, ObjectInfo

T = TypeVar("T")

OnRequest = Callable[[str, str, str], None]
"""Called with destination, operation, and "ok" or the error's class, on any thread."""


class CountingDestination:
    """A destination that reports each of its requests."""

    def __init__(self, inner: Destination, on_request: OnRequest) -> None:
        self._inner = inner
        self._on_request = on_request

    @property
    def name(self) -> str:
        """As the inner one's."""
        return self._inner.name

    def create(self, name: str, data: bytes | memoryview) -> None:
        """As the inner one's."""
        self._counted("create", lambda: self._inner.create(name, data))

    def get(self, name: str, *, size_max: int) -> bytes | memoryview:
        """As the inner one's."""
        return self._counted("get", lambda: self._inner.get(name, size_max=size_max))

    def get_range(self, name: str, start: int, size: int) -> bytes | memoryview:
        """As the inner one's."""
        return self._counted("get_range", lambda: self._inner.get_range(name, start, size))

    def list(self, prefix: str) -> list[ObjectInfo]:
        """As the inner one's."""
        return self._counted("list", lambda: self._inner.list(prefix))

    def delete(self, name: str) -> None:
        """As the inner one's."""
        self._counted("delete", lambda: self._inner.delete(name))

    def close(self) -> None:
        """As the inner one's."""
        self._inner.close()

    def _counted(self, operation: str, run: Callable[[], T]) -> T:
        try:
            result = run()
        except RepositoryError as error:
            self._on_request(self.name, operation, type(error).__name__)
            raise
        self._on_request(self.name, operation, "ok")
        return result
