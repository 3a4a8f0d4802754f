"""Who may do what on the clients' port: tokens with names and roles, and the limits before AUTH.

Theory of operation. A *token* is a secret with a name and a role. A client sends it with AUTH, and
may then send what the role allows: `data` everything but the commands that change or burden the
cluster itself, `admin` all. The name goes into the log with each administrative command; the secret
never does.

A token file has one token a line, `name role token`. Blank lines and lines that begin with # are
skipped. A file with one line that has no name and role holds nothing but a token: it is named
`default`, and has the role `admin`. So a new token is put beside an old one, clients change over,
and the old line is deleted. The file is read
again within a minute after it has changed. Clients whose token is gone are disconnected then. A
file that can't be used is logged, and the tokens stay as they are.

Where the server needs no token, every client is an administrator.

Before AUTH a client may send only a few commands, in requests of at most UNKNOWN_BYTES_MAX and
UNKNOWN_ARGUMENTS_MAX, which are parsed one by one. It is closed AUTH_TIMEOUT_S after it was
accepted, or after UNKNOWN_REQUESTS_MAX requests. After a wrong token a connection is not read for a
while, and after AUTH_FAILURES_MAX it is closed.
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from raftha.errors import ConfigError
from raftha.net.tls import check_token, read_secret

TOKENS_MAX = 64
"""Tokens in a file."""
NAME_CHARACTERS_MAX = 64
"""The longest name of a token."""
AUTH_TIMEOUT_S = 10.0
UNKNOWN_BYTES_MAX = 8 * 1024
"""Bytes of one request before AUTH."""
UNKNOWN_ARGUMENTS_MAX = 16
"""Arguments of one request before AUTH."""
UNKNOWN_LIMITS = (UNKNOWN_BYTES_MAX, UNKNOWN_ARGUMENTS_MAX)
UNKNOWN_REQUESTS_MAX = 64
"""Requests before AUTH."""
AUTH_FAILURES_MAX = 5
"""Wrong tokens on one connection; the last of them ends it."""
AUTH_PAUSE_S = 0.25
"""How long a connection is not read after its first wrong token; doubled each time."""

DEFAULT = "default"


class Role(enum.Enum):
    """What a token allows."""

    DATA = "data"
    ADMIN = "admin"


_ROLES = {role.value for role in Role}


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret."""

    name: str
    role: Role
    digest: bytes


NOBODY = Token("", Role.ADMIN, b"")
"""The token of clients that need none."""


def make_token(name: str, role: Role, secret: str) -> Token:
    """A token from its secret."""
    return Token(name, role, _hash(secret.encode()))


class Tokens:
    """The tokens that clients may send; empty if they need none."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._tokens = tuple(tokens)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def __contains__(self, token: Token) -> bool:
        return token in self._tokens

    def find(self, secret: bytes) -> Token | None:
        """Return the token with this secret; the time this takes reveals nothing about any."""
        digest, found = _hash(secret), None
        for token in self._tokens:
            # Comparing hashes hides the tokens' lengths; no early end hides which one it is.
            if hmac.compare_digest(digest, token.digest):
                found = token
        return found


class TokenFile:
    """A file with tokens, and when it last changed."""

    def __init__(self, setting: str, path: Path) -> None:
        self._setting = setting
        self._path = path
        self._stamp = self._stat()

    def load(self) -> Tokens:
        """Read the file. ConfigError names the line that is wrong, never a token."""
        return Tokens(make_token(*parts) for parts in _read(self._setting, self._path))

    def changed(self) -> Tokens | None:
        """Return the tokens if the file has changed since the last call. ConfigError."""
        stamp = self._stat()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        return self.load()

    def _stat(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError:
            return (0, 0, 0)  # `load` reports the reason.
        return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def read_admin_token(setting: str, path: Path) -> str:
    """The first token with the role admin in a file, for this process to send. ConfigError."""
    for _, role, secret in _read(setting, path):
        if role is Role.ADMIN:
            return secret
    raise ConfigError(f"{setting} {path} has no token with the role admin")


def _read(setting: str, path: Path) -> list[tuple[str, Role, str]]:
    try:
        text = read_secret(setting, path).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{setting} {path} is not text") from error
    return parse_tokens(f"{setting} {path}", text)


def parse_tokens(name: str, text: str) -> list[tuple[str, Role, str]]:
    """The tokens in the text of a file, which `name` stands for in errors. ConfigError."""
    tokens: list[tuple[str, Role, str]] = []
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    for number, line in lines:
        words, where = line.split(None, 2), f"{name}, line {number}:"
        if len(words) < 3 or words[1] not in _ROLES:
            if len(lines) > 1:
                raise ConfigError(f"{where} not a token", hint="as in: name admin token, or data")
            words = [DEFAULT, Role.ADMIN.value, line]
        check_token(f"{where} the token", words[2])
        if len(words[0]) > NAME_CHARACTERS_MAX or not words[0].isprintable():
            raise ConfigError(f"{where} a name has at most {NAME_CHARACTERS_MAX} characters")
        if any(words[0] == given or words[2] == secret for given, _, secret in tokens):
            raise ConfigError(f"{where} the name or the token stands twice", hint="use each once")
        tokens.append((words[0], Role(words[1]), words[2]))
    if not 0 < len(tokens) <= TOKENS_MAX:
        raise ConfigError(f"{name} must hold 1 to {TOKENS_MAX} tokens, got {len(tokens)}")
    return tokens


def _hash(secret: bytes) -> bytes:
    return sha256(secret).digest()
