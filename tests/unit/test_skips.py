"""Entries that an operator has every node skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftha.entry import Group
from raftha.errors import ConfigError, Corrupt, InvalidRequest
from raftha.storage.directory import skips
from raftha.storage.state.commands import pack_put
from raftha.storage.state.sessions import receipts
from tests.support.state_bench import Bench

HASH = bytes(range(16))


def test_the_list_survives_and_is_the_same_in_any_order(tmp_path: Path) -> None:
    assert skips.load(tmp_path) == {}
    skips.add(tmp_path, 9, HASH)
    skips.add(tmp_path, 5, HASH[::-1])
    skips.add(tmp_path, 9, HASH)
    assert skips.load(tmp_path) == {5: HASH[::-1], 9: HASH}
    other = {9: HASH, 5: HASH[::-1]}
    assert skips.fingerprint(skips.load(tmp_path)) == skips.fingerprint(other)
    assert skips.fingerprint(other) != skips.fingerprint({9: HASH})
    assert skips.fingerprint({}) == ""


def test_each_flipped_bit_is_noticed(tmp_path: Path) -> None:
    skips.add(tmp_path, 9, HASH)
    path = tmp_path / skips.NAME
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            found = skips.load(tmp_path)
        except (Corrupt, ConfigError):
            continue
        assert found == {9: HASH}, "an upper-case digit means the same"


def test_what_cannot_be_an_entry_is_refused(tmp_path: Path) -> None:
    skips.add(tmp_path, 9, HASH)
    for index, digest in ((9, HASH[::-1]), (0, HASH), (3, b"short")):
        with pytest.raises(InvalidRequest):
            skips.add(tmp_path, index, digest)
    assert skips.load(tmp_path) == {9: HASH}


def test_the_commands_of_a_skipped_entry_fail_and_a_repetition_gets_the_same() -> None:
    bench = Bench()
    group = Group(bench.session, 1, 1, 2, pack_put(b"a", b"1") + pack_put(b"b", b"1"))
    entry = bench.log.batch(group)
    bench.state.skips = {entry.index: entry.hash}
    first = bench.state.apply(entry)[0].outcome
    assert [str(failure) for failure in receipts(first)] == [
        f"Skipped: an operator skipped entry {entry.index}"
    ] * 2
    again = bench.apply(group)[0].outcome
    assert [str(failure) for failure in receipts(again)] == [str(f) for f in receipts(first)]
    assert bench.everything() == {}
    assert bench.state.applied.last_sequence == 4


def test_another_entry_of_the_same_index_is_not_skipped() -> None:
    bench = Bench()
    entry = bench.log.batch(Group(bench.session, 1, 1, 1, pack_put(b"a", b"1")))
    bench.state.skips = {entry.index: bytes(16), entry.index + 1: entry.hash}
    bench.state.apply(entry)
    assert bench.everything() == {b"a": b"1"}
