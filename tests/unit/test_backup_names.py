"""The names of a repository's objects: what is made is read back, and nothing else is accepted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.storage.backup import names

LINEAGE = "7f3a" * 8
LABEL = "20261127T093012Z-F-00000012f3a0"
HOSTILE = [
    "",
    ".",
    "..",
    "../up",
    "a/../../up",
    "/etc/passwd",
    "a//b",
    "a/",
    "a/./b",
    ".hidden",
    "a/.draft-1",
    "a\x00b",
    "a\nb",
    "a b",
    "a\\b",
    "C:a",
    "ä",
    "\u202egpj",
    "x" * 129,
    "x/" * 300 + "x",
    "a/b/c/d/e/f/g/h/i",
    "~root",
    "%2e%2e/x",
]
PARSERS: list[Callable[[str], Any]] = [
    names.parse_label,
    names.parse_key_name,
    names.parse_lineage_name,
    names.parse_backup_object,
    names.parse_segment_name,
    names.parse_gap_name,
    names.parse_restore_name,
]


def test_a_label_says_time_mode_and_index() -> None:
    assert names.label(1795771812_987_654, "F", 0x12F3A0) == LABEL
    assert names.parse_label(LABEL) == (1795771812_000_000, "F", 0x12F3A0)


def test_the_first_years_of_the_calendar_have_labels() -> None:
    assert names.label(-62135596800_000_000, "D", 1) == "00010101T000000Z-D-000000000001"


@pytest.mark.parametrize(
    ("time_us", "mode", "index"),
    [(0, "X", 1), (0, "", 1), (0, "FI", 1), (0, "F", 0), (0, "F", 1 << 48), (1 << 80, "F", 1)],
)
def test_no_label_is_made_of_values_that_do_not_fit(time_us: int, mode: str, index: int) -> None:
    with pytest.raises(ValueError, match=r"label|mode"):
        names.label(time_us, mode, index)


@given(st.integers(0, 1 << 52), st.sampled_from("FID"), st.integers(1, (1 << 48) - 1))
def test_labels_are_read_back_and_sort_by_time(time_us: int, mode: str, index: int) -> None:
    label = names.label(time_us, mode, index)
    assert names.parse_label(label) == (time_us // 1_000_000 * 1_000_000, mode, index)
    assert names.label(time_us + 1_000_000, mode, index) > label
    assert names.is_name(names.run_name(LINEAGE, label, 9999))


def test_every_name_is_an_objects_name_and_is_read_back() -> None:
    segment = names.SegmentName(LINEAGE, 0, 1, 0xFF, 0x10, 5)
    gap = names.GapName(LINEAGE, 3, 3)
    restore = names.RestoreName(LINEAGE, 9, 0x20, 0x1F, 1 << 50)
    read = [
        (names.key_name(LINEAGE, 12), names.parse_key_name, (LINEAGE, 12)),
        (names.lineage_name(LINEAGE), names.parse_lineage_name, LINEAGE),
        (
            names.run_name(LINEAGE, LABEL, 7),
            names.parse_backup_object,
            (LINEAGE, LABEL, "run-0007"),
        ),
        (
            names.manifest_name(LINEAGE, LABEL),
            names.parse_backup_object,
            (LINEAGE, LABEL, "manifest"),
        ),
        (
            names.verified_name(LINEAGE, LABEL),
            names.parse_backup_object,
            (LINEAGE, LABEL, "verified"),
        ),
        (names.segment_name(segment), names.parse_segment_name, segment),
        (names.gap_name(gap), names.parse_gap_name, gap),
        (names.restore_name(restore), names.parse_restore_name, restore),
    ]
    for name, parse, said in read:
        assert names.is_name(name)
        assert parse(name) == said
    assert names.is_name(names.repository_name())
    assert names.segment_name(segment).startswith(names.log_folder(LINEAGE, 0))
    assert names.gap_name(gap).startswith(names.gaps_folder(LINEAGE))
    assert names.restore_name(restore).startswith(names.restores_folder(LINEAGE))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    assert not names.is_name(name)
    with pytest.raises(ValueError, match="name"):
        names.check_name(name)
    for parse in PARSERS:
        with pytest.raises(ValueError, match=r"name|label"):
            parse(name)


@pytest.mark.parametrize(
    "label",
    [
        "20261127T093012Z-F-00000012F3A0",
        "20261127T093012Z-F-00000012f3a0\n",
        "20261127T093012Z-F-000000000000",
        "20261332T093012Z-F-00000012f3a0",
        "20261127T093060Z-F-00000012f3a0",
        "00000000T000000Z-F-00000012f3a0",
        "٢0261127T093012Z-F-00000012f3a0",
        "20261127T093012Z-X-00000012f3a0",
    ],
)
def test_a_label_in_another_spelling_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match=r"time|label|day|month|second|range"):
        names.parse_label(label)
    with pytest.raises(ValueError, match=r"time|name|label|day|month|second|range"):
        names.parse_backup_object(f"{LINEAGE}/backups/{label}/manifest")


@pytest.mark.parametrize(
    ("first", "last"), [(0, 5), (6, 5)], ids=["before the first entry", "backwards"]
)
def test_an_impossible_range_of_entries_is_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        names.parse_gap_name(f"{LINEAGE}/gaps/{first:016x}-{last:016x}")
    with pytest.raises(ValueError, match="impossible"):
        names.parse_segment_name(f"{LINEAGE}/log/0/{first:016x}-{last:016x}-{5:016x}-{5:016x}")


@pytest.mark.parametrize(
    "numbers", [(0, 2, 1, 1), (5, 2, 2, 1), (5, 2, 3, 1)], ids=["no entry", "to itself", "ahead"]
)
def test_an_impossible_restore_is_refused(numbers: tuple[int, ...]) -> None:
    fields = "-".join(f"{number:016x}" for number in numbers)
    with pytest.raises(ValueError, match="impossible"):
        names.parse_restore_name(f"{LINEAGE}/restores/{fields}")


@pytest.mark.parametrize(
    "make",
    [
        lambda: names.run_name(LINEAGE, LABEL, 10_000),
        lambda: names.run_name("..", LABEL, 0),
        lambda: names.manifest_name(LINEAGE, ".."),
        lambda: names.lineage_name("../x"),
        lambda: names.key_name(LINEAGE, 0),
        lambda: names.segment_name(names.SegmentName(LINEAGE, 2, 1, 1, 1, 1)),
        lambda: names.gap_name(names.GapName("x", 1, 1)),
        lambda: names.log_folder("x"),
        lambda: names.log_folder(LINEAGE, 2),
        lambda: names.restore_name(names.RestoreName(LINEAGE, -1, 1, 1, 1)),
    ],
)
def test_no_name_is_made_that_could_not_be_read(make: Callable[[], str]) -> None:
    with pytest.raises(ValueError, match=r"name|lineage|label|objects"):
        make()


@given(st.text(max_size=80) | st.sampled_from([LABEL, LINEAGE]).map(lambda text: f"{text}/x"))
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    for parse in (*PARSERS, names.check_name, names.check_folder):
        with contextlib.suppress(ValueError):
            parse(text)


def test_names_of_drills_are_read_back_and_no_others() -> None:
    name = names.drill_name("ab" * 16, 1_760_000_000_000_000)
    assert name == f"{'ab' * 16}/drills/000640b5eece0000.json"
    assert names.parse_drill_name(name) == ("ab" * 16, 1_760_000_000_000_000)
    assert name.startswith(names.drills_folder("ab" * 16))
    for bad in (name[:-5], name.replace("a", "A", 1), f"x/{name}", name.replace("drills", "log")):
        with pytest.raises(ValueError, match="another name"):
            names.parse_drill_name(bad)
