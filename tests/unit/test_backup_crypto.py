"""The keys of a repository: the operator's key, wrapped data keys, and both rotations."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raftha.errors import ConfigError, KeyMissing
from raftha.storage.backup.crypto import (
    NO_KEYS,
    SCRYPT_N_MAX,
    DataKey,
    KeyRing,
    OperatorKey,
    WrappedKey,
    hkdf_sha256,
    load_operator_key,
    run_key_command,
    unwrap,
    wrap,
)

REPOSITORY = "ab" * 16
OPERATOR = OperatorKey(bytes(range(32)))
PASSPHRASE = OperatorKey(b"correct horse battery", is_passphrase=True)


def test_hkdf_gives_the_values_of_rfc_5869() -> None:
    """Test case 1, of which our keys are the first 32 bytes."""
    key = hkdf_sha256(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert key.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (bytes(range(32)), OPERATOR),
        (bytes(range(32)).hex().encode() + b"\n", OPERATOR),
        (b"passphrase: correct horse battery\n", PASSPHRASE),
        (b"passphrase:exactly 32 bytes here", OperatorKey(b"exactly 32 bytes here", True)),
    ],
)
def test_an_operators_key_is_32_bytes_64_digits_or_a_passphrase(
    content: bytes, key: OperatorKey
) -> None:
    assert OperatorKey.parse(content) == key


@pytest.mark.parametrize(
    "content", [b"", b"short", b"0" * 63, b"zz" * 32, b"passphrase:too short", bytes(33)]
)
def test_anything_else_is_no_operators_key(content: bytes) -> None:
    with pytest.raises(ConfigError):
        OperatorKey.parse(content)


def test_a_key_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o400)
    assert load_operator_key(path) == OPERATOR


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
def test_a_key_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    path.chmod(mode)
    with pytest.raises(ConfigError, match="others than its owner") as raised:
        load_operator_key(path)
    assert raised.value.hint == f"chmod 600 {path}"


def test_a_key_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none can't be read"):
        load_operator_key(tmp_path / "none")


def test_a_command_prints_the_key() -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(range(32)))"
    assert run_key_command(shlex.join([sys.executable, "-c", program])) == OPERATOR


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (shlex.join([sys.executable, "-c", "import sys; sys.exit('vault is sealed')"]), "sealed"),
        ("/no/such/program", "failed"),
        ("", "failed"),
        ("'unclosed", "failed"),
        ("true", "neither 32 bytes"),
    ],
)
def test_a_command_that_fails_is_an_error_of_the_configuration(command: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_key_command(command)


@pytest.mark.parametrize("operator", [OPERATOR, PASSPHRASE], ids=["key", "passphrase"])
def test_a_data_key_is_unwrapped_by_the_key_that_wrapped_it(operator: OperatorKey) -> None:
    key = DataKey.new(3)
    wrapped = WrappedKey.decode(wrap(key, operator, REPOSITORY, 1, 77).encode())
    assert wrapped.created_us == 77
    assert unwrap(wrapped, operator) == key


@pytest.mark.parametrize(
    "other", [OperatorKey(bytes(32)), OperatorKey(b"another passphrase", True), PASSPHRASE]
)
def test_no_other_operators_key_unwraps_it(other: OperatorKey) -> None:
    wrapped = wrap(DataKey.new(1), OPERATOR, REPOSITORY, 1, 0)
    with pytest.raises(KeyMissing) as raised:
        unwrap(wrapped, other)
    assert raised.value.key_id == wrapped.key_id


def test_a_wrapped_key_that_was_moved_or_changed_does_not_open() -> None:
    wrapped = wrap(DataKey.new(1), OPERATOR, REPOSITORY, 1, 0)
    for changed in (
        replace(wrapped, repository="cd" * 16),
        replace(wrapped, key_id="cd" * 16),
        replace(wrapped, version=2),
        replace(wrapped, generation=9),
        replace(wrapped, wrapped=bytes(48)),
    ):
        with pytest.raises(KeyMissing):
            unwrap(changed, OPERATOR)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"repository": "xx"},
        {"key_id": "AB" * 16},
        {"version": 0},
        {"version": True},
        {"generation": -1},
        {"kdf": "md5"},
        {"kdf": None},
        {"scrypt_n": SCRYPT_N_MAX * 2},
        {"scrypt_n": 12345},
        {"nonce": "00"},
        {"wrapped": 5},
        {"created_us": 1.5},
    ],
)
def test_a_key_file_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    import json

    document = json.loads(wrap(DataKey.new(1), OPERATOR, REPOSITORY, 1, 0).encode())
    with pytest.raises(ValueError, match=r"format|is not|derivation"):
        WrappedKey.decode(json.dumps(document | change).encode())


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 4000, b" " * 5000, b"1"])
def test_a_key_file_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|bytes"):
        WrappedKey.decode(content)


def test_a_ring_opens_the_newest_version_that_the_operators_key_opens() -> None:
    """While the operator's key is changed, both versions of each data key lie there."""
    one, two = DataKey.new(1), DataKey.new(2)
    successor = OperatorKey(os.urandom(32))
    old = [wrap(key, OPERATOR, REPOSITORY, 1, 0) for key in (one, two)]
    new = [wrap(key, successor, REPOSITORY, 2, 0) for key in (one, two)]
    for operator, wrapped in ((OPERATOR, old + new), (successor, old + new), (successor, new)):
        ring = KeyRing.open(operator, wrapped)
        assert (ring.current, ring.find(one.key_id), len(ring)) == (two, one, 2)
        assert not ring.locked


def test_a_key_that_does_not_open_is_known_by_its_id() -> None:
    one, two = DataKey.new(1), DataKey.new(2)
    lost = OperatorKey(os.urandom(32))
    ring = KeyRing.open(
        OPERATOR, [wrap(one, OPERATOR, REPOSITORY, 1, 0), wrap(two, lost, REPOSITORY, 1, 0)]
    )
    assert (ring.current, set(ring.locked)) == (one, {two.key_id})
    with pytest.raises(KeyMissing, match="operator's key doesn't open"):
        ring.find(two.key_id)
    with pytest.raises(KeyMissing, match="not in the repository"):
        ring.find("00" * 16)


def test_without_keys_none_is_current_and_the_missing_one_is_named() -> None:
    assert (NO_KEYS.current, len(NO_KEYS), list(NO_KEYS)) == (None, 0, [])
    with pytest.raises(KeyMissing, match="encryption_key_file") as raised:
        NO_KEYS.find("ab" * 16)
    assert raised.value.key_id == "ab" * 16


def test_keys_made_at_once_by_two_nodes_have_one_order() -> None:
    one, two = DataKey("aa" * 16, bytes(32), 5), DataKey("bb" * 16, bytes(32), 5)
    assert KeyRing([one, two]).current == KeyRing([two, one]).current == two


def test_no_key_shows_when_it_is_printed() -> None:
    shown = repr([OPERATOR, DataKey("aa" * 16, b"secret", 1), PASSPHRASE])
    assert "secret=" not in shown
    assert "horse" not in shown
