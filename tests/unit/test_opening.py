"""Opening a repository by a configuration, or by the places that a command line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftha.config import BackupConfig
from raftha.errors import KeyMissing, ObjectMissing
from raftha.storage.backup.opening import open_configured, open_places, read_operator_key


def key_file(folder: Path, name: str = "key") -> Path:
    path = folder / name
    path.write_text(name.encode().hex().ljust(64, "0") + "\n", encoding="ascii")
    path.chmod(0o600)
    return path


def test_a_configured_repository_is_made_and_opened_again_by_its_place(tmp_path: Path) -> None:
    places = {"near": str(tmp_path / "near"), "far": (tmp_path / "far").as_uri()}
    config = BackupConfig(destinations=places)
    made = open_configured(config, may_create=True, now_us=1)
    made.close()
    again = open_places({"here": str(tmp_path / "far")}, None)
    assert (again.id, again.is_encrypted) == (made.id, False)
    again.close()


def test_an_encrypted_one_needs_its_key(tmp_path: Path) -> None:
    key = key_file(tmp_path)
    places = {"near": str(tmp_path / "near")}
    config = BackupConfig(destinations=places, encryption=True, encryption_key_file=key)
    made = open_configured(config, may_create=True, now_us=1)
    made.close()
    with pytest.raises(KeyMissing):
        open_places(places, None)
    with pytest.raises(KeyMissing):
        open_places(places, read_operator_key(key_file(tmp_path, "other"), ""))
    again = open_places(places, read_operator_key(Path(), f"cat {key}"))
    assert again.id == made.id
    again.close()


def test_a_place_without_a_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing):
        open_places({"near": str(tmp_path / "near")}, None)
    assert not (tmp_path / "near").exists()
