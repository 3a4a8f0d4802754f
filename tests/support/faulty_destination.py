"""A destination that fails as object stores do, at the calls that a test names.

    broken = FaultyDestination(MemoryDestination())
    broken.plan(Fault("create", "lost_answer", pattern="*/run-*", times=2))

| kind | what happens |
| --- | --- |
| `fails` | an error, and no effect: the server was away, or throttled |
| `lost_answer` | the effect, then an error: the answer never came |
| `late` | an error; the effect comes after the next call: a timeout of a request that went on |
| `conflict` | «exists already» (S3's 409), though nothing is there |
| `truncated` | a read returns half of the bytes |
| `rotten` | a read returns bytes of which one bit has changed |
| `stale` | a list, or a read of a new object, as if it were the time of `freeze()` |
| `ignored_condition` | a create replaces what is there |
| `denied` | a delete is refused, as by an object lock |
| `vanished` | the object is gone, for good |
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase

from raftha.errors import DeletionDenied, ObjectExists, ObjectMissing, RepositoryUnavailable
from raftha.storage.backup.destination import ObjectInfo
from raftha.storage.backup.memory import MemoryDestination

KINDS = {"fails", "lost_answer", "late", "conflict", "truncated", "rotten", "stale"}
KINDS |= {"ignored_condition", "denied", "vanished"}


@dataclass
class Fault:
    """`operation`: create, get, get_range, list, delete, or `*`; `times` None for always."""

    operation: str
    kind: str
    pattern: str = "*"
    times: int | None = 1

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind


class FaultyDestination:
    """Passes calls on to a destination in memory, as far as its faults let it."""

    def __init__(self, inner: MemoryDestination) -> None:
        self.inner = inner
        self.calls: list[tuple[str, str]] = []
        """Each call, as operation and name."""
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._late: list[Callable[[], object]] = []
        self._frozen: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.inner.name

    def plan(self, *faults: Fault) -> None:
        """Replace the faults by these."""
        with self._lock:
            self._faults = list(faults)

    def freeze(self) -> None:
        """Have `stale` faults show what is there now."""
        self._frozen = frozenset(info.name for info in self.inner.list(""))

    def create(self, name: str, data: bytes | memoryview) -> None:
        kind = self._begin("create", name)
        if kind == "conflict":
            raise ObjectExists("conflict", destination=self.name, object_name=name)
        if kind == "ignored_condition":
            self.inner.delete(name)
        content = bytes(data)
        self._change(kind, name, lambda: self.inner.create(name, content))

    def get(self, name: str, *, size_max: int) -> bytes:
        kind = self._begin("get", name)
        return self._changed(kind, name, self.inner.get(name, size_max=size_max))

    def get_range(self, name: str, start: int, size: int) -> bytes:
        kind = self._begin("get_range", name)
        return self._changed(kind, name, self.inner.get_range(name, start, size))

    def list(self, prefix: str) -> list[ObjectInfo]:
        kind = self._begin("list", prefix)
        found = self.inner.list(prefix)
        return [each for each in found if each.name in self._frozen] if kind == "stale" else found

    def delete(self, name: str) -> None:
        kind = self._begin("delete", name)
        if kind == "denied":
            raise DeletionDenied("locked", destination=self.name, object_name=name)
        self._change(kind, name, lambda: self.inner.delete(name))

    def close(self) -> None:
        self.inner.close()

    def _begin(self, operation: str, name: str) -> str:
        """Note a call, and return the kind of fault that it meets, or ""."""
        with self._lock:
            self.calls.append((operation, name))
            late, self._late = self._late, []
            kind = self._take_fault(operation, name)
        for effect in late:
            effect()
        if kind == "fails":
            raise RepositoryUnavailable("503", destination=self.name, object_name=name)
        if kind == "vanished":
            self.inner.delete(name)
        return kind

    def _take_fault(self, operation: str, name: str) -> str:
        for fault in self._faults:
            if fault.operation in (operation, "*") and fnmatchcase(name, fault.pattern):
                if fault.times is not None:
                    if not fault.times:
                        continue
                    fault.times -= 1
                return fault.kind
        return ""

    def _change(self, kind: str, name: str, effect: Callable[[], object]) -> None:
        if kind == "late":
            self._late.append(lambda: self._late_effect(effect))
        else:
            effect()
        if kind in ("late", "lost_answer"):
            raise RepositoryUnavailable("time-out", destination=self.name, object_name=name)

    @staticmethod
    def _late_effect(effect: Callable[[], object]) -> None:
        with suppress(ObjectExists):  # A repeated request was faster.
            effect()

    def _changed(self, kind: str, name: str, data: bytes) -> bytes:
        if kind == "stale" and name not in self._frozen:
            raise ObjectMissing("it is missing", destination=self.name, object_name=name)
        if kind == "lost_answer":
            raise RepositoryUnavailable("time-out", destination=self.name, object_name=name)
        if kind == "truncated":
            return data[: len(data) // 2]
        if kind == "rotten" and data:
            middle = len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data
