"""Stores: the contract that both LMDB and the simulator's store keep, and tests of LMDB only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import lmdb
import pytest
from google_crc32c import extend
from google_crc32c import value as crc32c

from raftha.errors import Corrupt, StorageFailed
from raftha.storage.state import checkpoint, lmdb_file
from raftha.storage.state.checkpoint import (
    CLEAN,
    SCAN_CHUNK_BYTES,
    SCAN_PAIRS,
    CheckpointStore,
)
from raftha.storage.state.records import PLAIN, are_plain, pack_record, unpack_record
from raftha.storage.state.store import Hasher, Store, StoreDigest
from tests.sim.store import DictStore
from tests.support.rot import rot

KIB, MIB = 1024, 1024 * 1024


@pytest.fixture(params=["lmdb", "dict"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = CheckpointStore(tmp_path / "state") if request.param == "lmdb" else DictStore()
    yield made
    made.close()


def reopened(store: Store, tmp_path: Path) -> Store:
    store.close()
    return store.crash() if isinstance(store, DictStore) else CheckpointStore(tmp_path / "state")


def digest_of(store: Store) -> StoreDigest:
    digest = store.digest()
    assert digest is not None
    return digest


# --- The contract ---------------------------------------------------------------------------------


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.meta() is None
    assert store.get(b"k") is None
    assert store.scan(None, None, limit=10, reverse=False) == []
    assert store.census([b"k"])[1:] == (0, 0)
    assert store.digest() == Hasher().finish()


def test_a_write_is_there_after_a_restart(store: Store, tmp_path: Path) -> None:
    store.write([(b"a", b"1"), (b"b", b""), (b"c", b"3")], b"first")
    store.write([(b"a", None), (b"b", b"22"), (b"missing", None)], b"second")
    again = reopened(store, tmp_path)
    assert again.meta() == b"second"
    assert again.scan(None, None, limit=10, reverse=False) == [(b"b", b"22"), (b"c", b"3")]
    assert (again.get(b"a"), again.get(b"b")) == (None, b"22")
    again.close()


def test_a_write_that_fails_half_way_changes_nothing(store: Store, tmp_path: Path) -> None:
    store.write([(b"a", b"1")], b"first")

    class Failing:
        def __iter__(self) -> Iterator[tuple[bytes, bytes | None]]:
            yield (b"a", b"2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(Failing(), b"second")
    again = reopened(store, tmp_path)
    assert (again.meta(), again.get(b"a")) == (b"first", b"1")
    again.close()


LONG = b"b" * 511


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, None),
        (b"", None),
        (b"b", None),
        (b"b", b"c"),
        (b"a\0", LONG),
        (LONG, None),
        (LONG + b"b", None),
        (None, LONG + b"b"),
        (LONG + b"\0", LONG + b"b"),
        (b"c", b"b"),
        (None, b""),
        (b"zz", None),
        (None, b"\0"),
        (b"\xff" * 600, None),
        (None, b"\xff" * 600),
    ],
)
def test_a_scan_covers_exactly_its_range(
    start: bytes | None, end: bytes | None, reverse: bool, store: Store
) -> None:
    keys = [b"\0", b"a", b"a\0", b"b", b"ba", LONG, b"c", b"\xff" * 511]
    store.write([(key, key[:3]) for key in keys], b"")
    wanted = [
        (key, key[:3])
        for key in keys
        if (start is None or key >= start) and (end is None or key < end)
    ]
    wanted = wanted[::-1] if reverse else wanted
    assert store.scan(start, end, limit=100, reverse=reverse) == wanted
    assert store.scan(start, end, limit=2, reverse=reverse) == wanted[:2]


def test_a_scan_of_large_values_ends_early_but_never_empty(store: Store) -> None:
    value = bytes(SCAN_CHUNK_BYTES)
    store.write([(b"%d" % n, value) for n in range(3)], b"")
    assert store.scan(None, None, limit=3, reverse=False) == [(b"0", value)]
    assert store.scan(b"0\0", None, limit=3, reverse=False) == [(b"1", value)]


def test_a_census_counts_all_keys_and_those_asked_for(store: Store) -> None:
    store.write([(b"a", b"1"), (b"b", b"2")], b"first")
    before = store.census([b"a", b"x"])
    assert before[1:] == (2, 1)
    assert store.census([]).version == before.version
    store.write([(b"c", b"3")], b"second")
    assert store.census([]).version != before.version


def test_a_digest_depends_on_keys_values_and_where_they_part(store: Store) -> None:
    digests = set()
    for items in ([(b"ab", b"c")], [(b"ab", None), (b"a", b"bc")], [(b"a", b"")], [(b"a", None)]):
        store.write(items, b"")
        digests.add(digest_of(store))
    assert len(digests) == 4


def test_a_digest_does_not_depend_on_history(store: Store) -> None:
    store.write([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")], b"x")
    store.write([(b"a", None), (b"b", b"4")], b"y")
    other = DictStore()
    other.write([(b"b", b"4"), (b"c", b"3")], b"z")
    assert store.digest() == other.digest()
    assert digest_of(store).keys == 2


@pytest.mark.parametrize("key", [b"a", b"b", b"c"])
def test_a_damaged_value_is_reported_and_never_returned(key: bytes, store: Store) -> None:
    store.write([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")], b"x")
    rot(store, key)
    with pytest.raises(Corrupt, match=f"the value of key {key.hex()} is damaged"):
        store.get(key)
    for reverse in (False, True):
        with pytest.raises(Corrupt):
            store.scan(None, None, limit=3, reverse=reverse)
    with pytest.raises(Corrupt):
        store.digest()
    sound = next(other for other in (b"a", b"b") if other != key)
    assert store.get(sound) is not None
    assert len(store.scan(sound, sound + b"\0", limit=3, reverse=False)) == 1


def test_a_write_replaces_a_damaged_value(store: Store) -> None:
    store.write([(b"a", b"1"), (b"b", b"2")], b"x")
    rot(store, b"a")
    rot(store, b"b")
    store.write([(b"a", b"3"), (b"b", None)], b"y")
    assert store.scan(None, None, limit=3, reverse=False) == [(b"a", b"3")]


# --- LMDB -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("expires_us", [None, 0, 1 << 60])
@pytest.mark.parametrize("value", [b"", b"v", bytes(300)])
def test_every_flipped_bit_of_a_record_is_found(value: bytes, expires_us: int | None) -> None:
    record = pack_record(b"key", value, expires_us)
    assert unpack_record(b"key", record) == value
    assert unpack_record(b"kez", record) is None
    for bit in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << bit % 8
        assert unpack_record(b"key", bytes(damaged)) is None
    for size in range(len(record)):
        assert unpack_record(b"key", record[:size]) is None


def test_a_record_whose_checksum_is_not_that_of_its_flags_is_not_believed() -> None:
    bodies = (b"\x02value", 0), (b"\x01short", 0), (b"\x01" + bytes(20), PLAIN), (b"\0value", 0)
    for body, mask in bodies:
        record = body + (extend(crc32c(b"key"), body) ^ mask).to_bytes(4, "little")
        assert unpack_record(b"key", record) is None


def test_sound_records_in_a_row_are_checked_in_one_go() -> None:
    rng = Random(1)
    pairs = [(rng.randbytes(rng.randint(1, 20)), rng.randbytes(rng.randint(0, 50))) for _ in "1234"]
    parts = [part for key, value in pairs for part in (key, pack_record(key, value))]
    joined = b"".join(parts)
    assert are_plain(joined) and are_plain(b"")
    for bit in range(8 * len(joined)):
        damaged = bytearray(joined)
        damaged[bit // 8] ^= 1 << bit % 8
        assert not are_plain(bytes(damaged))
    parts[1], parts[3] = parts[3], parts[1]
    assert not are_plain(b"".join(parts)), "records have changed places"
    key, value = pairs[0]
    assert not are_plain(key + pack_record(key, value, 5) + joined), "a record has flags"


def test_a_scan_over_many_pieces_keeps_to_its_bounds_both_ways(store: Store) -> None:
    pairs = [(b"%04d" % n, b"%d" % n) for n in range(3 * SCAN_PAIRS)]
    store.write(pairs, b"")
    for low in (0, 1, SCAN_PAIRS - 1, SCAN_PAIRS, 2 * SCAN_PAIRS + 1):
        for high in (low, low + 1, low + SCAN_PAIRS, low + SCAN_PAIRS + 1, 3 * SCAN_PAIRS):
            bounds = b"%04d" % low, b"%04d" % high
            for limit in (1, SCAN_PAIRS - 1, SCAN_PAIRS, SCAN_PAIRS + 1, 1000):
                expected = pairs[low:high]
                assert store.scan(*bounds, limit=limit, reverse=False) == expected[:limit]
                assert store.scan(*bounds, limit=limit, reverse=True) == expected[::-1][:limit]


def test_a_digest_covers_keys_and_values_only(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state")
    store.write([(b"a", b"1")], b"x")
    before = store.digest()
    with store._env.begin(store._data, write=True) as txn:
        txn.put(b"a", pack_record(b"a", b"1", 1_800_000_000_000_000))
    assert store.digest() == before
    assert store.get(b"a") == b"1"
    store.close()


def test_a_flipped_bit_in_the_file_is_never_read_as_data(tmp_path: Path) -> None:
    """The file is marked as clean, and size and time are kept: so it is not verified."""
    model = {b"key%05d" % n: b"value-of-%05d-" % n + bytes(300) for n in range(300)}
    store = CheckpointStore(tmp_path / "state")
    store.write(sorted(model.items()), b"x")
    store.close()
    path = tmp_path / "state" / "data.mdb"
    stat, random = path.stat(), Random(3)
    content = path.read_bytes()
    for key in random.sample(sorted(model), 40):
        text = b"value-of-%s-" % key[3:]
        flipped = bytearray(text)
        flipped[random.randrange(15)] ^= 1 << random.randrange(8)
        path.write_bytes(content.replace(text, flipped))  # LMDB leaves copies in free space.
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (tmp_path / "state" / CLEAN).write_bytes(b"%d %d\n" % (stat.st_size, stat.st_mtime_ns))
        store = CheckpointStore(tmp_path / "state")
        for other, value in model.items():
            if other != key:
                assert store.get(other) == value
        with pytest.raises(Corrupt):
            store.get(key)
        with pytest.raises(Corrupt):
            store.digest()
        store.close()
        assert not (tmp_path / "state" / CLEAN).exists(), "a damaged file is never marked as clean"


def swap_pages(path: Path) -> None:
    """Put a leaf page's content in the place of another: a write that went to the wrong sector."""
    content = path.read_bytes()
    first, second = content.index(b"value-of-00000"), content.index(b"value-of-00200")
    source, target = first // 4096 * 4096, second // 4096 * 4096
    assert source != target
    with path.open("r+b") as file:
        file.seek(target)
        file.write(content[source : source + 4096])


def make_store(folder: Path) -> None:
    store = CheckpointStore(folder)
    store.write([(b"key%05d" % n, b"value-of-%05d-" % n + bytes(300)) for n in range(300)], b"x")
    store.close()


def test_a_clean_end_leaves_a_mark_and_a_start_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "state")
    assert (tmp_path / "state" / CLEAN).exists()
    monkeypatch.setattr(lmdb_file, "verify", lambda path: ["it was verified"])
    store = CheckpointStore(tmp_path / "state")
    assert not (tmp_path / "state" / CLEAN).exists()
    store.close()
    CheckpointStore(tmp_path / "state").close()
    (tmp_path / "state" / CLEAN).unlink()  # What a crash leaves.
    with pytest.raises(Corrupt, match="it was verified"):
        CheckpointStore(tmp_path / "state")
    CheckpointStore(tmp_path / "state", is_verified=True).close()


def test_a_digest_finds_a_page_in_the_place_of_another(tmp_path: Path) -> None:
    """Each value on it is sound; but keys are in the wrong place, and others are missing."""
    make_store(tmp_path / "state")
    swap_pages(tmp_path / "state" / "data.mdb")
    store = CheckpointStore(tmp_path / "state", is_verified=True)
    with pytest.raises(Corrupt):
        store.digest()
    store.close()


def test_a_file_changed_by_another_program_is_verified(tmp_path: Path) -> None:
    make_store(tmp_path / "state")
    swap_pages(tmp_path / "state" / "data.mdb")
    with pytest.raises(Corrupt):
        CheckpointStore(tmp_path / "state")
    with pytest.raises(Corrupt):
        CheckpointStore(tmp_path / "state")


def test_a_file_that_a_crash_left_is_verified_before_it_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "state")
    (tmp_path / "state" / CLEAN).unlink()
    CheckpointStore(tmp_path / "state").close()
    (tmp_path / "state" / CLEAN).unlink()
    swap_pages(tmp_path / "state" / "data.mdb")

    def mapped(*args: object, **kwargs: object) -> None:
        raise AssertionError("the file was mapped")

    monkeypatch.setattr(lmdb, "open", mapped)
    with pytest.raises(Corrupt):
        CheckpointStore(tmp_path / "state")


def test_damage_that_a_write_or_a_copy_meets_is_corrupt(tmp_path: Path) -> None:
    """No failed disk: a node whose state is damaged heals, one whose disk failed doesn't."""
    make_store(tmp_path / "state")
    store = CheckpointStore(tmp_path / "state")
    path = tmp_path / "state" / "data.mdb"
    with path.open("r+b") as file:
        content = path.read_bytes()
        for page in range(2 * 4096, len(content), 4096):
            file.seek(page + 10)
            file.write(b"\0\0")  # The flags: it is a page of no kind.
    for expected in (Corrupt, StorageFailed):
        with pytest.raises(expected):
            store.write([(b"key00100", b"new")], b"y")
    with pytest.raises(Corrupt):
        store.copy(lambda piece: None)
    with pytest.raises(Corrupt):
        store.get(b"key00100")
    store.close()
    assert not (tmp_path / "state" / CLEAN).exists()


@pytest.mark.parametrize("error", [lmdb.BadValsizeError, lmdb.CorruptedError, lmdb.PageFullError])
def test_what_lmdb_raises_of_a_damaged_file_is_no_failed_disk(
    error: type[lmdb.Error], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path / "state")

    def fail(*args: object) -> None:
        raise error("mdb_put")

    monkeypatch.setattr(checkpoint, "pack_record", fail)
    with pytest.raises(Corrupt):
        store.write([(b"a", b"1")], b"x")
    store.close()


def test_an_unclear_error_is_damage_only_if_the_verifier_finds_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "state")
    store = CheckpointStore(tmp_path / "state")

    def fail(*args: object) -> None:
        raise lmdb.InvalidParameterError("mdb_put")

    monkeypatch.setattr(checkpoint, "pack_record", fail)
    with pytest.raises(StorageFailed):
        store.write([(b"a", b"1")], b"x")
    store.close()
    store = CheckpointStore(tmp_path / "state")
    monkeypatch.setattr(lmdb_file, "verify", lambda path: ["a page is gone"])
    with pytest.raises(Corrupt, match="a page is gone"):
        store.write([(b"a", b"1")], b"x")
    store.close()


def test_writes_in_random_order_of_keys_all_arrive(tmp_path: Path) -> None:
    random = Random(5)
    store = CheckpointStore(tmp_path / "state")
    model: dict[bytes, bytes] = {}
    for _ in range(5):
        changes: dict[bytes, bytes | None] = {
            random.randbytes(2): random.choice([None, random.randbytes(random.randrange(9000))])
            for _ in range(100)
        }
        store.write(sorted(changes.items()), b"")
        model.update({key: value for key, value in changes.items() if value is not None})
        for key in [key for key, value in changes.items() if value is None]:
            model.pop(key, None)
    hasher = Hasher()
    for key, value in sorted(model.items()):
        hasher.add(key, value)
    assert store.digest() == hasher.finish()
    store.close()


# A file-size limit makes the kernel refuse LMDB's writes, half way through a checkpoint.
def test_a_file_that_is_not_lmdb_is_corrupt(tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "state").close()
    (tmp_path / "state" / "data.mdb").write_bytes(b"\x55" * 8192)
    with pytest.raises(Corrupt, match=r"data\.mdb is corrupt"):
        CheckpointStore(tmp_path / "state")


@pytest.mark.parametrize("kept", [0, 4096, 8192, 20_000, -4096])
def test_a_file_that_is_cut_short_is_corrupt(kept: int, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state")
    store.write([(b"%d" % n, bytes(1000)) for n in range(50)], b"x")
    store.close()
    path = tmp_path / "state" / "data.mdb"
    os.truncate(path, kept if kept >= 0 else path.stat().st_size + kept)
    with pytest.raises(Corrupt):
        CheckpointStore(tmp_path / "state")


def test_a_missing_file_in_a_used_folder_is_corrupt(tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "state").close()
    (tmp_path / "state" / "data.mdb").unlink()
    with pytest.raises(Corrupt, match="missing"):
        CheckpointStore(tmp_path / "state")


def test_leftovers_of_a_crash_while_making_the_files_are_no_problem(tmp_path: Path) -> None:
    scratch = tmp_path / "state.new"
    scratch.mkdir()
    (scratch / "data.mdb").write_bytes(b"half")
    store = CheckpointStore(tmp_path / "state")
    store.write([(b"a", b"1")], b"x")
    store.close()
    assert not scratch.exists()


def test_a_folder_that_cannot_be_made_is_a_storage_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailed, match="file/state"):
        CheckpointStore(tmp_path / "file" / "state")


# --- Size -----------------------------------------------------------------------------------------


def test_a_digest_is_of_the_version_at_its_beginning(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state")
    store.write([(b"a", b"1")], b"")
    before = digest_of(store)
    assert store.digest(begun=lambda: store.write([(b"a", b"2"), (b"b", b"3")], b"")) == before
    assert digest_of(store) != before
    store.close()


def test_a_digest_that_is_no_longer_wanted_is_given_up(store: Store) -> None:
    store.write([(b"a", b"1")], b"")
    assert store.digest(is_wanted=lambda: False) is None
