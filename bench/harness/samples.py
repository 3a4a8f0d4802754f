"""The measurement of a load: how many operations, in which time, and how long each took."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0)


@dataclass(frozen=True, slots=True)
class Taken:
    """The raw measurement of one process that made load; latencies in seconds."""

    seconds: float
    latencies: array[float]
    begun: array[float]
    """When each operation was due, on `time.perf_counter`, the same in all processes."""
    failed: int
    cpu_s: float
    """CPU time of the whole process during the load."""

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        fields = {"seconds": self.seconds, "failed": self.failed, "cpu_s": self.cpu_s}
        return {**fields, "latencies": _to_text(self.latencies), "begun": _to_text(self.begun)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Taken:
        """What `as_dict` made."""
        latencies, begun = _from_text(fields["latencies"]), _from_text(fields["begun"])
        return cls(fields["seconds"], latencies, begun, fields["failed"], fields["cpu_s"])


def _to_text(numbers: array[float]) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


def _from_text(text: str) -> array[float]:
    numbers = array("d")
    numbers.frombytes(base64.b64decode(text))
    return numbers


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. `client_cpu` is in cores; None where clients and servers share a process."""

    operations: int
    seconds: float
    quantiles_ms: Mapping[float, float]
    failed: int = 0
    client_cpu: float | None = None

    @classmethod
    def of(cls, taken: Iterable[Taken], *, is_client: bool = True) -> Sample:
        """Join the measurements of processes that made load at the same time."""
        parts = list(taken)
        latencies = sorted(latency for part in parts for latency in part.latencies)
        return cls(
            len(latencies),
            max(part.seconds for part in parts),
            {q: 1000 * quantile(latencies, q) for q in QUANTILES},
            sum(part.failed for part in parts),
            sum(part.cpu_s / part.seconds for part in parts) if is_client else None,
        )

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


def quantile(ordered: Sequence[float], q: float) -> float:
    """The smallest value that at least a share `q` of them doesn't exceed (nearest rank)."""
    assert ordered, "nothing was measured"
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]
