"""Which operations on the file system fail, wait, or hang.

A fault is for operations of one kind (`write`, `sync`: fsync and fdatasync of files, `sync_dir`) on
the paths that match a pattern as `fnmatch` has it, relative to the mount point. It strikes so many
times, or always; later operations succeed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

FOR_EVER_S = float("inf")


@dataclass(slots=True, kw_only=True)
class Fault:
    """A fault: after `wait_s` an operation fails with `code`, or is done if `code` is 0."""

    operation: str
    pattern: str = "*"
    code: int = 0
    wait_s: float = 0.0
    times: int | None = None
    """How often; None for always."""

    def strikes(self, operation: str, path: str) -> bool:
        """True if it hits this operation, which is then counted."""
        is_hit = operation == self.operation and fnmatchcase(path, self.pattern)
        if not is_hit or self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def to_json(self) -> dict[str, Any]:
        """The fields for JSON, where an endless wait is null."""
        wait_s = None if self.wait_s == FOR_EVER_S else self.wait_s
        return {
            "operation": self.operation,
            "pattern": self.pattern,
            "code": self.code,
            "wait_s": wait_s,
            "times": self.times,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Fault:
        """The fault that `to_json` was given."""
        wait_s = FOR_EVER_S if fields["wait_s"] is None else fields["wait_s"]
        return cls(**{**fields, "wait_s": wait_s})
