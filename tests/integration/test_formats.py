"""Data directories that earlier states of the code have made, opened with today's."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

import raftha
from raftha.storage.state import state
from tests.fixtures.__main__ import HERE, KEYS, LATER, Machine, config_of

KEPT = sorted(HERE.glob("*.tar.xz"))
BYTES_MAX = 300_000


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as kept:
        kept.extractall(folder, filter="data")
    return folder


def test_there_is_a_kept_directory_of_the_present_formats() -> None:
    assert KEPT
    assert sum(path.stat().st_size for path in KEPT) < BYTES_MAX


@pytest.mark.parametrize("archive", KEPT, ids=lambda path: path.name.split(".tar")[0])
def test_a_kept_data_directory_opens_with_all_that_it_had(archive: Path, tmp_path: Path) -> None:
    folder = unpacked(archive, tmp_path / "1")
    config = config_of(folder)
    with raftha.HaManager(config, state_machine=Machine()) as ha:
        expected = {b"key/%d" % i: b"value %d" % i for i in range(KEYS) if i != 7}
        expected[b"counter"] = b"%d" % (5 + LATER)
        assert dict(ha.scan(limit=1000)) == expected
        assert ha.execute("add", b"counter", 1).result == 6 + LATER
        sequence = ha.get_status().sequence
    with raftha.HaManager(config, state_machine=Machine()) as again:
        assert again.get(b"counter") == b"%d" % (6 + LATER)
        assert again.get_status().sequence == sequence


def test_a_state_of_a_later_format_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacked(KEPT[-1], tmp_path / "1")
    before = {path: path.read_bytes() for path in folder.glob("wal/*")}
    monkeypatch.setattr(state, "META_VERSION", 1)
    monkeypatch.setattr(state, "META_WITH_CATALOG", 1)
    monkeypatch.setattr(state, "META_BEFORE", 1)
    with pytest.raises(raftha.ConfigError, match="use the version of raftha that wrote it"):
        raftha.HaManager(config_of(folder), state_machine=Machine()).start()
    assert {path: path.read_bytes() for path in folder.glob("wal/*")} == before
    assert not list(folder.glob("quarantine/*"))
    assert json.loads((folder / "identity").read_bytes())["node_id"] == 1
