"""The results of a benchmark, and their JSON file.

    {"schema": 1, "question": ..., "at": ..., "arguments": {...},
     "machine": {...}, "versions": {...}, "fdatasync_ms": {"before": ..., "after": ...},
     "skipped": {system: reason}, "failed": {system: what happened},
     "measurements": [{"system", "metric", "unit", "better", "parameters", "values"}],
     "curves": [{"system", "kind", "parameters", "unit", "runs"}]}

A measurement has a value for each run. `better` is higher or lower, or empty if neither is better.
A curve has a list of [x, y] for each run; of kind `quantiles` (x: the quantile) or `timeline` (x:
seconds). Two files are compared by question, system, metric and parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1

Better = Literal["higher", "lower", ""]
Parameters = Mapping[str, int | float | str]
Points = list[list[float]]


class BadResults(Exception):
    """A file doesn't hold results."""


@dataclass(slots=True, kw_only=True)
class Measurement:
    """One quantity, once for each run."""

    system: str
    metric: str
    unit: str
    better: Better
    parameters: Parameters
    values: list[float] = field(default_factory=list)

    @property
    def id(self) -> tuple[str, str, str]:
        """The parts that make two measurements comparable."""
        return self.system, self.metric, json.dumps(self.parameters, sort_keys=True)


@dataclass(slots=True, kw_only=True)
class Curve:
    """Points, once for each run."""

    system: str
    kind: Literal["quantiles", "timeline"]
    unit: str
    parameters: Parameters
    runs: list[Points] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Results:
    """All results of one call of a question."""

    question: str
    at: str
    arguments: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    fdatasync_ms: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)

    def add(
        self,
        system: str,
        metric: str,
        value: float,
        *,
        unit: str,
        better: Better = "",
        **parameters: int | float | str,
    ) -> None:
        """Add one run's value."""
        new = Measurement(
            system=system, metric=metric, unit=unit, better=better, parameters=parameters
        )
        for measurement in self.measurements:
            if measurement.id == new.id:
                measurement.values.append(value)
                return
        new.values.append(value)
        self.measurements.append(new)

    def add_curve(
        self,
        system: str,
        kind: Literal["quantiles", "timeline"],
        points: Sequence[Sequence[float]],
        *,
        unit: str,
        **parameters: int | float | str,
    ) -> None:
        """Add one run's points."""
        run = [list(point) for point in points]
        for curve in self.curves:
            if (curve.system, curve.kind, curve.parameters) == (system, kind, parameters):
                curve.runs.append(run)
                return
        self.curves.append(
            Curve(system=system, kind=kind, unit=unit, parameters=parameters, runs=[run])
        )

    def write(self, path: Path) -> None:
        """Write the file."""
        fields = {"schema": SCHEMA, **asdict(self)}
        path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Results:
    """Read a file; BadResults if something isn't as the module's docstring says."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or fields.pop("schema", None) != SCHEMA:
            raise BadResults(f"{path}: not results of schema {SCHEMA}")
        results = Results(**fields)
        results.measurements = [Measurement(**each) for each in fields["measurements"]]
        results.curves = [Curve(**each) for each in fields["curves"]]
        _check(results)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadResults(f"{path}: {error}") from error
    return results


def _check(results: Results) -> None:
    for text in (results.question, results.at):
        _expect(isinstance(text, str) and text, f"{text!r} should be text")
    for name in ("arguments", "machine", "versions", "fdatasync_ms", "skipped", "failed"):
        _expect(isinstance(getattr(results, name), dict), f"{name} should be an object")
    for name in ("before", "after"):
        _expect(_is_number(results.fdatasync_ms.get(name)), f"fdatasync_ms has no {name}")
    for m in results.measurements:
        _expect(m.better in ("higher", "lower", ""), f"{m.id}: better is {m.better!r}")
        _expect(all(isinstance(t, str) and t for t in (m.system, m.metric)), f"{m.id}: no name")
        _expect(m.values and all(map(_is_number, m.values)), f"{m.id}: no values")
    for c in results.curves:
        _expect(c.kind in ("quantiles", "timeline"), f"{c.system}: kind is {c.kind!r}")
        for x, y in (point for run in c.runs for point in run):
            _expect(_is_number(x) and _is_number(y), f"{c.system}: a point isn't two numbers")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expect(is_so: object, problem: str) -> None:
    if not is_so:
        raise BadResults(problem)
