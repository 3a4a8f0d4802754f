"""Which outcomes a table of sessions keeps: the fast way agrees with a plain one, loaded or not."""

from __future__ import annotations

from unittest.mock import patch

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from raftha.entry import Group
from raftha.storage.state import sessions
from raftha.storage.state.sessions import Outcome, Sessions

LIMIT = 5
"""Outcomes that one session keeps at most."""
NUMBERS = st.one_of(st.integers(1, 30), st.sampled_from([1 << 20, 1 << 40, (1 << 64) - 1]))
STEPS = st.lists(st.tuples(NUMBERS, st.integers(0, 40), st.booleans()), max_size=60)


def packed(table: Sessions) -> bytes:
    packer = msgpack.Packer(autoreset=False)
    table.freeze().pack(packer)
    data: bytes = packer.bytes()
    return data


def kept_in(table: Sessions) -> tuple[int, list[int]]:
    """The floor and the numbers of the only session, in order."""
    ((_, floor, _, outcomes, _),) = msgpack.unpackb(packed(table))
    return floor, [number for number, *_ in outcomes]


@given(STEPS)
def test_the_lowest_numbers_are_dropped_whatever_happened_before(
    steps: list[tuple[int, int, bool]],
) -> None:
    table = Sessions()
    table.open(7, 1, b"owner")
    floor, numbers = 1, list[int]()
    with patch.object(sessions, "SESSION_BYTES_MAX", LIMIT * sessions._OUTCOME_BYTES):
        for number, above, is_reloaded in steps:
            if number < floor or number in numbers:
                continue
            asked = max(1, min(number, floor + above))
            table.record(Group(7, number, asked, 1, b""), Outcome(1, 2, 3, 4, 1))
            numbers.append(number)
            if asked > floor:
                floor, numbers = asked, [each for each in numbers if each >= asked]
            while len(numbers) > LIMIT:
                floor = min(numbers) + 1
                numbers.remove(min(numbers))
            assert kept_in(table) == (floor, numbers)
            if is_reloaded:
                table = Sessions.load(msgpack.unpackb(packed(table)))


@given(STEPS)
def test_a_frozen_table_stays_as_it_is_and_is_packed_as_one(
    steps: list[tuple[int, int, bool]],
) -> None:
    table = Sessions()
    table.open(7, 1, b"owner")
    frozen = table.freeze()
    for number in dict.fromkeys(number for number, _, _ in steps):
        before = packed(table)
        frozen = table.freeze()
        table.record(Group(7, number, 1, 1, b""), Outcome(1, 2, 3, 4, 1, [None]))
        packer = msgpack.Packer(autoreset=False)
        frozen.pack(packer)
        assert packer.bytes() == before
        assert msgpack.packb(msgpack.unpackb(packed(table))) == packed(table)
