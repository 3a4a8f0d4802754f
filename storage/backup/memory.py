"""A destination in this process's memory, for tests: `memory://name`."""

from __future__ import annotations

import threading
import time

from raftha.errors import BackupDamaged, ObjectExists, ObjectMissing, ObjectTooLarge
from raftha.storage.backup.destination import ObjectInfo
from raftha.storage.backup.names import check_folder, check_name


class MemoryDestination:
    """Objects in a dictionary."""

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, int]] = {}

    @property
    def name(self) -> str:
        return self._name

    def create(self, name: str, data: bytes | memoryview) -> None:
        check_name(name)
        with self._lock:
            if name in self._objects:
                raise ObjectExists("it exists", destination=self._name, object_name=name)
            self._objects[name] = bytes(data), time.time_ns() // 1000

    def get(self, name: str, *, size_max: int) -> bytes:
        data = self._find(name)
        if len(data) > size_max:
            raise ObjectTooLarge(
                f"{len(data)} bytes, expected at most {size_max}",
                destination=self._name,
                object_name=name,
            )
        return data

    def get_range(self, name: str, start: int, size: int) -> bytes:
        data = self._find(name)[start : start + size]
        if len(data) != size:
            raise BackupDamaged(
                f"it ends before byte {start + size}", destination=self._name, object_name=name
            )
        return data

    def list(self, prefix: str) -> list[ObjectInfo]:
        folder = "".join(f"{part}/" for part in check_folder(prefix))
        with self._lock:
            return sorted(
                ObjectInfo(name, len(data), modified_us)
                for name, (data, modified_us) in self._objects.items()
                if name.startswith(folder)
            )

    def delete(self, name: str) -> None:
        check_name(name)
        with self._lock:
            self._objects.pop(name, None)

    def close(self) -> None:
        pass  # The objects stay: another destination of this name may share them.

    def _find(self, name: str) -> bytes:
        check_name(name)
        with self._lock:
            if name not in self._objects:
                raise ObjectMissing("it is missing", destination=self._name, object_name=name)
            return self._objects[name][0]
