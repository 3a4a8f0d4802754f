"""Drills: a random moment is restored for proof, and what that took is the measured restore time.

Theory of operation. Listing and hashing objects proves little; a restore that ends with the right
digest proves that there is a backup. A drill takes a moment of the window at random, restores it as
`raftha restore` would, into a place of its own, and throws the result away. If a full backup was
taken behind the moment, and is not too far, it replays on to it and compares the digests there. The
user's state machine may look at the contents (`StateMachine.on_drill`).

The report goes to the repository, `<lineage>/drills/<time>.json`, so that all members know when the
last drill was, and what rates it has measured. It is small JSON; a damaged one counts as none.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from raftha.errors import ArchiveGap, DeletionDenied, RafthaError, RepositoryError, StorageFull
from raftha.recovery import DrillReport
from raftha.storage.backup import names
from raftha.storage.backup.chain import Shelf, find_manifest
from raftha.storage.backup.destination import create_or_compare
from raftha.storage.backup.documents import DOCUMENT_BYTES_MAX, parse_json, write_json
from raftha.storage.backup.image_stores import STATE, FolderStores, ImageStores
from raftha.storage.backup.planner import plan_recovery, window
from raftha.storage.backup.recovery import Rates, RecoveryPlan, Target, Window
from raftha.storage.backup.replay import Image, ReplayHooks, build_image, check_machine
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.restore_plan import SPARE_BYTES, STATE_FACTOR
from raftha.storage.backup.timeline import Timeline, read_timeline
from raftha.storage.state.machine import StateMachine, Transaction
from raftha.storage.state.state import State

TRIES = 20
"""Random moments that are tried until one is in no gap."""
CHECK_S_MAX = 600.0
"""A drill replays on to the next full backup if that is estimated to take no longer."""
RATE_BYTES_MIN, RATE_COMMANDS_MIN = 10 << 20, 100_000
"""With less work than this, a drill's rates say nothing."""
KEPT_MAX = 100
"""Reports that stay; the oldest go first."""
ERROR_CHARS = 1000
FORMAT = 1


class DrillOrder(NamedTuple):
    """What to restore: a target, or a random moment by this seed. `started_us`: now."""

    started_us: int
    lineage: str = ""
    target: Target | None = None
    seed: int = 0
    node_id: int = 0


def run_drill(
    repository: Repository,
    order: DrillOrder,
    place: Path | ImageStores,
    machine: StateMachine | None = None,
    hooks: ReplayHooks | None = None,
) -> DrillReport:
    """Restore a moment in this place; all errors of raftha are in the report."""
    drill = _Drill(repository, order, place, machine, hooks or ReplayHooks())
    try:
        drill.run()
    except RafthaError as error:
        drill.note(is_ok=False, error=(str(error) or type(error).__name__)[:ERROR_CHARS])
    return drill.report


class _Drill:
    """One drill, whose report becomes fuller with each step."""

    def __init__(
        self,
        repository: Repository,
        order: DrillOrder,
        place: Path | ImageStores,
        machine: StateMachine | None,
        hooks: ReplayHooks,
    ) -> None:
        self._repository = repository
        self._order = order
        self._folder = place if isinstance(place, Path) else None
        self._stores = FolderStores(place) if isinstance(place, Path) else place
        self._machine = machine
        self._hooks = hooks
        self.report = DrillReport(
            is_ok=False,
            started_us=order.started_us,
            node_id=order.node_id,
            lineage=order.lineage,
            target=str(order.target or ""),
        )

    def note(self, **fields: Any) -> None:
        """Know more."""
        self.report = dataclasses.replace(self.report, **fields)

    def run(self) -> None:
        """All of it; RafthaError."""
        began = self._hooks.monotonic()
        timeline = read_timeline(self._repository)
        found = window(self._repository, self._order.lineage, timeline=timeline)
        self.note(
            lineage=found.lineage,
            rpo_ms=max(0, self._order.started_us - found.latest.time_us) / 1000,
        )
        plan = self._plan(timeline, found)
        self._note_plan(plan, self._hooks.monotonic() - began)
        check_machine(plan, self._machine)
        self._check_space(plan)
        image = build_image(plan, self._repository, self._stores, self._machine, self._hooks)
        self._note_image(image)
        self._show(plan)
        self.note(is_ok=True)

    def _check_space(self, plan: RecoveryPlan) -> None:
        """StorageFull unless there is room for another state: what the node needs comes first."""
        if self._folder is not None:
            wanted = int(STATE_FACTOR * plan.size_bytes) + SPARE_BYTES
            free = shutil.disk_usage(self._folder).free
            if free < wanted:
                raise StorageFull(f"a drill may need {wanted} bytes of disk, {free} are free")

    def _plan(self, timeline: Timeline, found: Window) -> RecoveryPlan:
        def planned(target: Target, not_after: Target | None = None) -> RecoveryPlan:
            return plan_recovery(
                self._repository,
                target,
                lineage=found.lineage,
                timeline=timeline,
                not_after=not_after,
            )

        if self._order.target is not None:
            plan = planned(self._order.target)
        else:
            plan = _random_plan(planned, found, Random(self._order.seed))
        further = _next_full(self._repository, timeline, plan)
        if further is not None:
            with suppress(RepositoryError):  # Then there is nothing to compare with.
                longer = planned(Target(time_us=further), plan.target)
                if longer.checks and longer.seconds <= CHECK_S_MAX:
                    self.note(target=str(plan.target))
                    return longer
        return plan

    def _note_plan(self, plan: RecoveryPlan, plan_s: float) -> None:
        self.note(
            target=self.report.target or str(plan.target),
            sequence=plan.position.last_sequence,
            time_us=plan.position.time_us,
            backups=tuple(link.manifest.label for link in plan.links),
            segments=len(plan.stretches),
            commands=plan.commands,
            size_bytes=plan.size_bytes,
            size_compressed=plan.size_compressed,
            plan_s=plan_s,
        )

    def _note_image(self, image: Image) -> None:
        seconds = image.seconds
        self.note(
            keys=image.keys,
            digest=image.digest,
            checked=image.checked,
            restore_s=seconds.get("restore", 0.0),
            replay_s=seconds.get("replay", 0.0),
            digest_s=seconds.get("digest", 0.0),
        )

    def _show(self, plan: RecoveryPlan) -> None:
        """Let the user's state machine look at the contents."""
        if self._machine is None:
            return
        store = self._stores.open(STATE)
        try:
            state = State(store, self._machine)
            txn = Transaction(
                state, plan.position.time_us, plan.position.last_sequence, state.versions
            )
            try:
                self._machine.on_drill(txn)
            except Exception as error:
                raise RepositoryError(f"on_drill: {error!r:.500}") from error
        finally:
            store.close()


def _random_plan(
    planned: Callable[[Target], RecoveryPlan], found: Window, random: Random
) -> RecoveryPlan:
    """A plan for a moment at random, by time or by sequence."""
    for _ in range(TRIES):
        with suppress(ArchiveGap):
            if random.random() < 0.5:
                at = random.randint(found.earliest.sequence, found.latest.sequence)
                if found.latest.sequence - found.earliest.sequence < 1 << 32:
                    return planned(Target(sequence=at))
            return planned(
                Target(time_us=random.randint(found.earliest.time_us, found.latest.time_us))
            )
    return planned(Target(time_us=found.latest.time_us))


def _next_full(repository: Repository, timeline: Timeline, plan: RecoveryPlan) -> int | None:
    """The time of the next full backup's position behind a plan's end; None if there is none."""
    shelf = Shelf(repository.destinations, repository.id, repository.keys)
    for listed in timeline.backups:
        is_full = listed.is_verified and listed.mode == "F"
        is_behind = listed.begin_index > plan.position.index
        if is_full and is_behind and listed.lineage == plan.lineage:
            with suppress(RepositoryError):
                manifest = find_manifest(shelf, listed.lineage, listed.label).manifest
                if manifest.digest:
                    return manifest.position.time_us
    return None


# ------------------------------------------------------------------------------- reports


def write_report(repository: Repository, report: DrillReport) -> None:
    """Put a report into all destinations that take it, and delete the oldest ones there."""
    name = names.drill_name(report.lineage, report.started_us)
    data = encode_report(report)
    for destination in repository.destinations.values():
        with suppress(RepositoryError):
            create_or_compare(destination, name, data)
            listed = destination.list(names.drills_folder(report.lineage))
            for info in listed[:-KEPT_MAX]:
                with suppress(DeletionDenied):
                    destination.delete(info.name)


def last_report(repository: Repository, lineage: str) -> DrillReport | None:
    """The newest report of a lineage that can be read; None if there is none."""
    found: list[tuple[int, str]] = []
    for name, destination in repository.destinations.items():
        with suppress(RepositoryError):
            for info in destination.list(names.drills_folder(lineage)):
                with suppress(ValueError):
                    found.append((names.parse_drill_name(info.name)[1], name))
    for time_us, name in sorted(found, reverse=True)[: 2 * len(repository.destinations)]:
        with suppress(RepositoryError, ValueError):
            data = repository.destinations[name].get(
                names.drill_name(lineage, time_us), size_max=DOCUMENT_BYTES_MAX
            )
            return decode_report(bytes(data))
    return None


def rates_of(report: DrillReport | None) -> Rates:
    """The rates that a drill has measured; the usual ones where it had too little to do."""
    rates = Rates()
    if report is None or not report.is_ok:
        return rates
    if report.size_bytes >= RATE_BYTES_MIN and report.restore_s > 0:
        took_s = report.restore_s + report.digest_s
        rates = rates._replace(restore_bytes_per_s=report.size_bytes / took_s)
    if report.commands >= RATE_COMMANDS_MIN and report.replay_s > 0:
        rates = rates._replace(replay_commands_per_s=report.commands / report.replay_s)
    return rates


def encode_report(report: DrillReport) -> bytes:
    """Return a report's bytes, within the limit of small documents."""
    fields = dataclasses.asdict(report)
    data = write_json({"format": FORMAT, **fields})
    if len(data) > DOCUMENT_BYTES_MAX:  # A long chain, a long error.
        fields |= {"backups": report.backups[:1], "checked": report.checked[:1]}
        fields["error"] = report.error[:200]
        data = write_json({"format": FORMAT, **fields})
    return data


def decode_report(data: bytes) -> DrillReport:
    """Read a report; ValueError if it isn't one."""
    found = parse_json(data)
    if found.pop("format", None) != FORMAT:
        raise ValueError("it is of another format")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(DrillReport):
        value = found.pop(field.name, None)
        kind = _KINDS[str(field.type).partition("[")[0]]
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple and type(value) is list and all(type(each) is str for each in value):
            value = tuple(value)
        if type(value) is not kind or (isinstance(value, int | float) and not 0 <= value < 1 << 63):
            raise ValueError(f"{field.name} is not what a report has")
        values[field.name] = value
    return DrillReport(**values)


_KINDS: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str, "tuple": tuple}
