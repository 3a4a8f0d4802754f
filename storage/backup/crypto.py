"""The keys of an encrypted repository: the operator's key wraps data keys, which seal objects.

Theory of operation. The operator keeps one key: 32 bytes, or a passphrase. It encrypts nothing but
*data keys*, which are random and lie wrapped in the repository, under `keys/`. Each object is
sealed with a key of its own, which HKDF-SHA256 makes from a data key and the object's random salt.
So no two objects share a key, and a frame's number can serve as its nonce.

    wrapped data key = AES-256-GCM(operator's key, random nonce, data key, WRAP || ids)
    object's key     = HKDF-SHA256(data key, salt of the object, "raftha/object/1")

Changing the operator's key wraps the same data keys once more, under a higher version, and rewrites
no object. A new data key seals later objects only. Both are done by `Repository`; this module does
no I/O but reading the operator's key.

A key file is JSON: format 1, repository and key_id (32 hex digits each), version, generation (which
data key is the newest), kdf ("none" or "scrypt"), scrypt_salt and scrypt_n, nonce, wrapped, and
created_us. Its size is bounded, and so is the work that a hostile one can cause.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shlex
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raftha.errors import ConfigError, KeyMissing
from raftha.extras import extra
from raftha.storage.backup.documents import hex_of, number_of, parse_json, text_of, write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
ID_BYTES = 16
SALT_BYTES = 16
NONCE_BYTES = 12
TAG_BYTES = 16
FORMAT = 1
SCRYPT_N = 1 << 15
"""Costs 32 MiB and about 0.1 s."""
SCRYPT_N_MAX = 1 << 17
_SCRYPT_BYTES_MAX = 1 << 28
PASSPHRASE_BYTES_MIN = 16
_OPERATOR_BYTES_MAX = 4096
_COMMAND_TIMEOUT_S = 30
_WRAP = b"raftha/key/1"
_OBJECT = b"raftha/object/1"
_PASSPHRASE = b"passphrase:"


def aes_gcm(key: bytes) -> AESGCM:
    """Return the cipher; MissingExtra without the package that has it."""
    with extra("backup"):
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
    return AESGCM(key)


def hkdf_sha256(key: bytes, salt: bytes, info: bytes) -> bytes:
    """Derive 32 bytes (RFC 5869, one block of output)."""
    extracted = hmac.digest(salt, key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key that seals objects. `key_id` is 32 hex digits; `generation` tells which is newest."""

    key_id: str
    secret: bytes = field(repr=False)
    generation: int

    @classmethod
    def new(cls, generation: int, random: Callable[[int], bytes] = os.urandom) -> DataKey:
        """Make a random one."""
        return cls(random(ID_BYTES).hex(), random(KEY_BYTES), generation)

    def object_key(self, salt: bytes) -> bytes:
        """Return the key of the object with this salt."""
        return hkdf_sha256(self.secret, salt, _OBJECT)


@dataclass(frozen=True, slots=True)
class OperatorKey:
    """What the operator keeps: 32 bytes, or a passphrase of which scrypt makes them."""

    secret: bytes = field(repr=False)
    is_passphrase: bool = False

    @classmethod
    def parse(cls, content: bytes) -> OperatorKey:
        """Read 32 bytes, 64 hex digits, or `passphrase:` and a text. ConfigError otherwise."""
        line = content.strip()
        if line.startswith(_PASSPHRASE):
            passphrase = line.removeprefix(_PASSPHRASE).strip()
            if len(passphrase) < PASSPHRASE_BYTES_MIN:
                raise ConfigError(
                    f"the passphrase of the encryption key is shorter than {PASSPHRASE_BYTES_MIN}"
                    " bytes"
                )
            return cls(passphrase, is_passphrase=True)
        if len(content) == KEY_BYTES:
            return cls(content)
        try:
            secret = bytes.fromhex(line.decode("ascii"))
        except ValueError:
            secret = b""
        if len(secret) != KEY_BYTES:
            raise ConfigError(
                "the encryption key is neither 32 bytes, nor 64 hex digits, nor `passphrase:`"
                " and a passphrase",
                hint="make one with: openssl rand -hex 32",
            )
        return cls(secret)

    def wrapping_key(self, scrypt_salt: bytes, scrypt_n: int) -> bytes:
        """Return the key that wraps data keys."""
        if not self.is_passphrase:
            return self.secret
        return hashlib.scrypt(
            self.secret,
            salt=scrypt_salt,
            n=scrypt_n,
            r=8,
            p=1,
            maxmem=_SCRYPT_BYTES_MAX,
            dklen=KEY_BYTES,
        )


def load_operator_key(path: Path) -> OperatorKey:
    """Read the operator's key. ConfigError if others than its owner may read or change the file."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_OPERATOR_BYTES_MAX)
    except OSError as error:
        raise ConfigError(f"the encryption key {path} can't be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"others than its owner may use the encryption key {path}", hint=f"chmod 600 {path}"
        )
    return OperatorKey.parse(content)


def run_key_command(command: str) -> OperatorKey:
    """Run a command, without a shell, that prints the operator's key. ConfigError if it fails."""
    try:
        ran = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip()[:200]
        raise ConfigError(
            f"the command for the encryption key ended with {error.returncode}: {said!a}"
        ) from None
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"the command for the encryption key failed: {error}") from None
    return OperatorKey.parse(ran.stdout[:_OPERATOR_BYTES_MAX])


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """A data key as it lies in the repository."""

    repository: str
    key_id: str
    version: int
    generation: int
    kdf: str
    scrypt_salt: bytes
    scrypt_n: int
    nonce: bytes
    wrapped: bytes
    created_us: int

    def encode(self) -> bytes:
        """Return the content of its file."""
        return write_json(
            {
                "format": FORMAT,
                "repository": self.repository,
                "key_id": self.key_id,
                "version": self.version,
                "generation": self.generation,
                "kdf": self.kdf,
                "scrypt_salt": self.scrypt_salt.hex(),
                "scrypt_n": self.scrypt_n,
                "nonce": self.nonce.hex(),
                "wrapped": self.wrapped.hex(),
                "created_us": self.created_us,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> WrappedKey:
        """Read its file; ValueError if it isn't one, or costs too much to open."""
        found = parse_json(data)
        if found.get("format") != FORMAT:
            raise ValueError("a key file of another format")
        key = cls(
            repository=hex_of(found, "repository", ID_BYTES).hex(),
            key_id=hex_of(found, "key_id", ID_BYTES).hex(),
            version=number_of(found, "version", 1, 999_999),
            generation=number_of(found, "generation", 1, 1 << 31),
            kdf=text_of(found, "kdf"),
            scrypt_salt=hex_of(found, "scrypt_salt", SALT_BYTES),
            scrypt_n=number_of(found, "scrypt_n", 1 << 10, SCRYPT_N_MAX),
            nonce=hex_of(found, "nonce", NONCE_BYTES),
            wrapped=hex_of(found, "wrapped", KEY_BYTES + TAG_BYTES),
            created_us=number_of(found, "created_us", 0, 1 << 62),
        )
        if key.kdf not in ("none", "scrypt") or key.scrypt_n & (key.scrypt_n - 1):
            raise ValueError("a key file with an unknown derivation")
        return key

    @property
    def associated(self) -> bytes:
        """What the wrapping authenticates besides the key: it belongs to one place and name."""
        names = f"{self.repository}/{self.key_id}/{self.version}/{self.generation}/{self.kdf}"
        return _WRAP + names.encode()


def wrap(
    key: DataKey,
    operator: OperatorKey,
    repository: str,
    version: int,
    created_us: int,
    random: Callable[[int], bytes] = os.urandom,
) -> WrappedKey:
    """Wrap a data key under the operator's key."""
    wrapped = WrappedKey(
        repository=repository,
        key_id=key.key_id,
        version=version,
        generation=key.generation,
        kdf="scrypt" if operator.is_passphrase else "none",
        scrypt_salt=random(SALT_BYTES),
        scrypt_n=SCRYPT_N,
        nonce=random(NONCE_BYTES),
        wrapped=b"",
        created_us=created_us,
    )
    cipher = aes_gcm(operator.wrapping_key(wrapped.scrypt_salt, wrapped.scrypt_n))
    sealed = cipher.encrypt(wrapped.nonce, key.secret, wrapped.associated)
    return replace(wrapped, wrapped=sealed)


def unwrap(wrapped: WrappedKey, operator: OperatorKey) -> DataKey:
    """Open a data key; KeyMissing if this operator's key doesn't."""
    with extra("backup"):
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415
    if operator.is_passphrase != (wrapped.kdf == "scrypt"):
        raise KeyMissing("the operator's key is of another kind", wrapped.key_id)
    cipher = aes_gcm(operator.wrapping_key(wrapped.scrypt_salt, wrapped.scrypt_n))
    try:
        secret = cipher.decrypt(wrapped.nonce, wrapped.wrapped, wrapped.associated)
    except InvalidTag:
        raise KeyMissing(
            "the operator's key doesn't open it",
            wrapped.key_id,
            hint="is encryption_key_file the one that this repository was made with?",
        ) from None
    return DataKey(wrapped.key_id, secret, wrapped.generation)


class KeyRing:
    """The data keys that are open, and the names of those that aren't. Immutable."""

    def __init__(self, keys: Iterable[DataKey] = (), locked: Iterable[str] = ()) -> None:
        self._keys: Mapping[str, DataKey] = {key.key_id: key for key in keys}
        self.locked = frozenset(locked) - self._keys.keys()
        """Ids of data keys that the operator's key doesn't open."""

    @classmethod
    def open(cls, operator: OperatorKey, wrapped: Iterable[WrappedKey]) -> KeyRing:
        """Open what this operator's key opens: of each data key the newest version that it does."""
        keys: dict[str, DataKey] = {}
        locked: set[str] = set()
        for each in sorted(wrapped, key=lambda key: key.version, reverse=True):
            if each.key_id in keys:
                continue
            try:
                keys[each.key_id] = unwrap(each, operator)
            except KeyMissing:
                locked.add(each.key_id)
        return cls(keys.values(), locked)

    @property
    def current(self) -> DataKey | None:
        """The key for new objects: the newest one; None in a repository without encryption."""
        return max(self._keys.values(), key=lambda key: (key.generation, key.key_id), default=None)

    def find(self, key_id: str) -> DataKey:
        """Return a data key; KeyMissing if it isn't here, or isn't open."""
        if key_id in self._keys:
            return self._keys[key_id]
        if key_id in self.locked:
            raise KeyMissing("the operator's key doesn't open this data key", key_id)
        raise KeyMissing(
            "this data key is not in the repository" if self._keys else "it is encrypted",
            key_id,
            hint="" if self._keys else "give the operator's key: encryption_key_file",
        )

    def __iter__(self) -> Iterator[DataKey]:
        return iter(self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)


NO_KEYS = KeyRing()
"""The keys of a repository without encryption."""
