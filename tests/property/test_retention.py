"""Retention against a model that tries everything: nothing needed ever goes, and all is explained.

The model asks its questions in the most direct way, for one backup and one destination at a time,
and shares no code with `decide`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from raftha.config import RetentionPolicy
from raftha.entry import LogPosition
from raftha.storage.backup.retention import Candidate, Decisions, candidate_of, decide
from raftha.storage.state.catalog import Catalog
from raftha.storage.state.catalog_changes import BackupRecord, Retire
from raftha.types import RetentionFate

HOUR_US = 3_600_000_000
NOW_US = int(datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()) * 1_000_000
PLACES = ("far", "local")
KEPT, WAITS, GOES, RETAINED = RetentionFate

policies = st.builds(
    RetentionPolicy,
    keep_last=st.integers(1, 4),
    keep_daily_days=st.integers(0, 4),
    keep_weekly_weeks=st.integers(0, 3),
    keep_monthly_months=st.integers(0, 3),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    """Backups as a cluster takes them: some in one destination only, some lost, some retired."""
    found: list[Candidate] = []
    age = draw(st.integers(0, 2000))
    for backup_id in range(1, draw(st.integers(1, 14)) + 1):
        age = max(0, age - draw(st.integers(0, 300)))
        lineage = draw(st.sampled_from(("now", "now", "now", "before")))
        before = [each for each in found if each.lineage == lineage and each.state != "failed"]
        parents = [0, *(each.id for each in before[-4:])]
        state = draw(
            st.sampled_from(("completed",) * 6 + ("missing", "failed", "retired", "running"))
        )
        places = draw(st.sampled_from(((), ("local",), ("far",), PLACES, PLACES, PLACES)))
        found.append(
            Candidate(
                id=backup_id,
                label=f"b{backup_id}",
                parent=draw(st.sampled_from(parents)),
                lineage=lineage,
                state=state,
                time_us=NOW_US - age * HOUR_US,
                destinations=frozenset() if state == "missing" else frozenset(places),
                pins=draw(st.sampled_from(((), (), (), ("audit",)))),
                refused_by=frozenset(draw(st.sampled_from(((), (), ("far",)))))
                if state == "retired"
                else frozenset(),
            )
        )
    return found


windows = st.sampled_from((0, 24 * HOUR_US, 500 * HOUR_US))


class Model:
    """What stays, by definition."""

    def __init__(
        self, backups: Sequence[Candidate], policy: RetentionPolicy, window_us: int
    ) -> None:
        self.backups = sorted(backups, key=lambda each: (each.time_us, each.id))
        self.by_id = {each.id: each for each in backups}
        self.policy = policy
        self.window_us = window_us

    def is_whole(self, backup_id: int, states: Sequence[str], places: Sequence[str] | None) -> bool:
        while backup_id:
            each = self.by_id.get(backup_id)
            if each is None or each.state not in states:
                return False
            if places is not None and not set(places) & each.destinations:
                return False
            backup_id = each.parent
        return True

    def groups(self) -> list[list[Candidate]]:
        """The backups among which the policy chooses, once for each group."""
        ways: list[tuple[Sequence[str], Sequence[str] | None]] = [
            (("completed",), None),
            (("completed", "missing"), None),
            *((("completed",), (place,)) for place in PLACES),
        ]
        own = [each for each in self.backups if each.lineage == "now"]
        return [[b for b in own if self.is_whole(b.id, *way)] for way in ways]

    def is_chosen(self, backup: Candidate, group: list[Candidate]) -> bool:
        """Whether the policy keeps this backup of the group by itself."""
        newer = group[group.index(backup) + 1 :]
        policy = self.policy
        if len(newer) < policy.keep_last or all(
            each.id < backup.id for each in group if each != backup
        ):
            return True
        then = datetime.fromtimestamp(backup.time_us // 10**6, UTC).date()
        today = datetime.fromtimestamp(NOW_US // 10**6, UTC).date()
        dates = {datetime.fromtimestamp(each.time_us // 10**6, UTC).date() for each in newer}
        if then not in dates and then > today - timedelta(days=policy.keep_daily_days):
            return True
        monday = then - timedelta(days=then.weekday())
        is_last = all(each - timedelta(days=each.weekday()) != monday for each in dates)
        this_monday = today - timedelta(days=today.weekday())
        if is_last and monday > this_monday - timedelta(weeks=policy.keep_weekly_weeks):
            return True
        is_last = all((each.year, each.month) != (then.year, then.month) for each in dates)
        months = (today.year - then.year) * 12 + today.month - then.month
        if is_last and months < policy.keep_monthly_months:
            return True
        if not self.window_us:
            return False
        start = NOW_US - self.window_us
        if backup.time_us <= start:
            return not any(each.time_us <= start for each in newer)
        return backup == group[0]

    def kept(self) -> set[int]:
        groups = self.groups()
        kept = {
            each.id
            for each in self.backups
            if each.lineage != "now"
            or each.state == "running"
            or (each.pins and each.state in ("completed", "missing"))
            or any(each in group and self.is_chosen(each, group) for group in groups)
        }
        while True:
            parents = {self.by_id[i].parent for i in kept} & self.by_id.keys()
            if parents <= kept:
                return kept
            kept |= parents


def run(backups: Sequence[Candidate], policy: RetentionPolicy, window_us: int = 0) -> Decisions:
    return decide(
        backups, policy, lineage="now", destinations=PLACES, now_us=NOW_US, window_us=window_us
    )


def delete(backups: Sequence[Candidate], decisions: Decisions) -> list[Candidate]:
    """What is left once the catalog has retired these, and each destination has deleted them."""
    left = []
    for each in backups:
        state = "retired" if each.id in decisions.retire else each.state
        left.append(each._replace(state=state))
    later = decide(left, RetentionPolicy(), lineage="now", destinations=PLACES, now_us=NOW_US)
    gone: dict[int, set[str]] = {}
    for place, ids in later.deletions.items():
        for backup_id in ids:
            gone.setdefault(backup_id, set()).add(place)
    left = [b._replace(destinations=b.destinations - gone.get(b.id, set())) for b in left]
    kept = {each.backup_id for each in decisions.each if each.fate is KEPT}
    return [b for b in left if b.state != "retired" or b.destinations or b.id in kept]


@given(histories(), policies, windows)
@settings(max_examples=300, deadline=None)
def test_what_is_kept_is_what_the_model_keeps(
    backups: list[Candidate], policy: RetentionPolicy, window_us: int
) -> None:
    kept = {d.backup_id for d in run(backups, policy, window_us).each if d.fate is KEPT}
    assert kept == Model(backups, policy, window_us).kept()


@given(histories(), policies, windows)
@settings(max_examples=300, deadline=None)
def test_nothing_that_is_needed_is_retired_or_deleted(
    backups: list[Candidate], policy: RetentionPolicy, window_us: int
) -> None:
    decisions = run(backups, policy, window_us)
    model = Model(backups, policy, window_us)
    going = {*decisions.retire, *(i for ids in decisions.deletions.values() for i in ids)}
    assert not going & model.kept()
    for backup_id in decisions.retire:
        for child in backups:  # The catalog refuses it otherwise.
            is_child = child.parent == backup_id and child.state in ("completed", "missing")
            assert not is_child or child.id in decisions.retire
    for place in PLACES:
        before = [b for b in backups if model.is_whole(b.id, ("completed",), (place,))]
        newest = max((b.time_us for b in before if b.lineage == "now"), default=-1)
        for each in decisions.each:
            was = model.by_id[each.backup_id]
            if each.destination == place and each.fate is GOES and was.state != "failed":
                assert was.time_us <= newest


@given(histories(), policies, windows)
@settings(max_examples=200, deadline=None)
def test_what_is_kept_can_be_restored_after_all_deletions(
    backups: list[Candidate], policy: RetentionPolicy, window_us: int
) -> None:
    decisions = run(backups, policy, window_us)
    left = delete(backups, decisions)
    before, after = Model(backups, policy, window_us), Model(left, policy, window_us)
    for backup_id in before.kept():
        for places in (None, *((place,) for place in PLACES)):
            if before.is_whole(backup_id, ("completed",), places):
                assert after.is_whole(backup_id, ("completed",), places)


@given(histories(), policies, windows)
@settings(max_examples=200, deadline=None)
def test_everything_is_explained_once(
    backups: list[Candidate], policy: RetentionPolicy, window_us: int
) -> None:
    decisions = run(backups, policy, window_us)
    told = [(each.backup_id, each.destination) for each in decisions.each]
    assert sorted(told) == sorted(
        (each.id, place) for each in backups for place in (sorted(each.destinations) or [""])
    )
    assert all(each.reasons and all(each.reasons) for each in decisions.each)


@given(histories(), policies, st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_catalog_does_not_matter(
    backups: list[Candidate], policy: RetentionPolicy, random: Any
) -> None:
    shuffled = list(backups)
    random.shuffle(shuffled)
    assert run(shuffled, policy) == run(backups, policy)


@given(histories(), policies)
@settings(max_examples=300, deadline=None)
def test_the_catalog_accepts_what_is_to_be_retired(
    backups: list[Candidate], policy: RetentionPolicy
) -> None:
    """Only as long as the two agree does anything ever go."""
    running = [each.id for each in backups if each.state == "running"]
    backups = [b for b in backups if b.state != "running" or b.id == running[-1]]
    rows = [list(_record(each, backups)) for each in backups]
    catalog = Catalog.load([*Catalog().dump()[:-2], rows, []])
    again = [candidate_of(record, NOW_US) for record in catalog.records()]
    decisions = run(again, policy)
    catalog.apply(Retire(decisions.retire, "now"), LogPosition(999, 1, NOW_US, 0, b""))
    assert catalog.verdict.refusal == ""


def _record(backup: Candidate, backups: list[Candidate]) -> BackupRecord:
    parent = backup.parent if any(each.id == backup.parent for each in backups) else 0
    return BackupRecord(
        id=backup.id,
        mode="incremental" if parent else "full",
        parent=parent,
        base=parent or backup.id,
        lineage=backup.lineage,
        node=1,
        state=backup.state,
        destinations=tuple(sorted(backup.destinations)),
        began_us=backup.time_us,
        position_us=backup.time_us if backup.state == "completed" else 0,
        pins=tuple((name, 0) for name in backup.pins),
    )


@given(histories(), policies)
@settings(max_examples=200, deadline=None)
def test_retention_comes_to_rest(backups: list[Candidate], policy: RetentionPolicy) -> None:
    """What was kept once is kept by the next run too, if no time has passed."""
    first = run(backups, policy)
    left = delete(backups, first)
    second = run(left, policy)
    kept = {each.backup_id for each in first.each if each.fate is KEPT}
    assert kept == {each.backup_id for each in second.each if each.fate is KEPT}
