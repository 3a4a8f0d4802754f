"""Tokens: names, roles, files that change, and what the log says of administrators."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from raftha.errors import ConfigError
from raftha.server.access import (
    NOBODY,
    TOKENS_MAX,
    Role,
    TokenFile,
    Tokens,
    make_token,
    parse_tokens,
    read_admin_token,
)
from tests.support.scene import Scene

OPS, WEB, WEB_NEW = "o" * 16, "w" * 16, "n" * 16
FILE = f"# name role token\n\nops admin {OPS}\n  web data {WEB}\nweb-new data {WEB_NEW}\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_file_has_several_tokens_with_names_and_roles(tmp_path: Path) -> None:
    tokens = TokenFile("f", write(tmp_path / "tokens", FILE)).load()
    found = [tokens.find(secret.encode()) for secret in (OPS, WEB, WEB_NEW, "x" * 16)]
    names = [(token.name, token.role) if token else None for token in found]
    assert names == [("ops", Role.ADMIN), ("web", Role.DATA), ("web-new", Role.DATA), None]
    assert read_admin_token("f", tmp_path / "tokens") == OPS


@pytest.mark.parametrize("secret", [OPS, "correct horse battery staple"])
def test_a_bare_token_is_the_default_administrators(tmp_path: Path, secret: str) -> None:
    tokens = TokenFile("f", write(tmp_path / "tokens", f"{secret}\n")).load()
    found = tokens.find(secret.encode())
    assert found is not None
    assert (found.name, found.role) == ("default", Role.ADMIN)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"ops admin {OPS}\nops data {WEB}", "line 2: the name or the token stands twice"),
        (f"ops admin {OPS}\nweb data {OPS}", "line 2: the name or the token stands twice"),
        (f"ops admin {OPS}\nweb root {WEB}", "line 2: not a token"),
        (f"{OPS}\n{WEB}", "line 1: not a token"),
        ("ops admin short", "16 to 1024 characters"),
        (f"{'n' * 65} admin {OPS}", "at most 64 characters"),
        ("# nothing", f"1 to {TOKENS_MAX} tokens, got 0"),
        ("\n".join(f"n{i} data {i:016}" for i in range(TOKENS_MAX + 1)), "got 65"),
    ],
)
def test_a_malformed_file_is_refused_without_showing_a_token(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_tokens("file", text)
    assert OPS not in str(caught.value)


def test_a_command_for_operators_needs_an_admin_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no token with the role admin"):
        read_admin_token("f", write(tmp_path / "tokens", f"web data {WEB}"))


def test_a_changed_file_is_loaded_again_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", FILE)
    file = TokenFile("f", path)
    assert file.changed() is None
    write(path, f"ops admin {OPS}\n")
    renewed = file.changed()
    assert renewed is not None
    assert renewed.find(WEB.encode()) is None
    write(path, "broken\n")
    with pytest.raises(ConfigError):
        file.changed()
    assert file.changed() is None


@pytest.mark.parametrize(
    "request_",
    [
        (b"RAFTHA", b"FAILOVER", b"2"),
        (b"RAFTHA", b"ADD", b"4", b"h:1"),
        (b"RAFTHA", b"PROMOTE", b"4"),
        (b"RAFTHA", b"MOVE", b"4", b"REGION", b"far"),
        (b"RAFTHA", b"REMOVE", b"2"),
        (b"RAFTHA", b"DIGEST"),
    ],
)
def test_a_data_token_reads_and_writes_and_administers_nothing(request_: tuple[bytes, ...]) -> None:
    async def script() -> None:
        scene = Scene(WEB, Role.DATA)
        await scene.send((b"AUTH", WEB.encode()), request_)
        refusal = b"-NOPERM this command needs a token with the role admin\r\n"
        assert scene.take() == b"+OK\r\n" + refusal
        await scene.send((b"SET", b"a", b"1"))
        assert scene.ha.kinds() == ["put"]

    asyncio.run(script())


def test_the_log_names_the_token_of_an_administrator(caplog: pytest.LogCaptureFixture) -> None:
    async def script() -> None:
        scene = Scene(OPS)
        await scene.send((b"AUTH", OPS.encode()), (b"RAFTHA", b"FAILOVER", b"2\x1b[31m"))
        assert scene.take().startswith(b"+OK\r\n-ERR")

    with caplog.at_level(logging.INFO):
        asyncio.run(script())
    lines = [record.getMessage() for record in caplog.records]
    assert any("token=default" in line and "admin failed" in line for line in lines)
    assert not any("\x1b" in line or OPS in line for line in lines)


def test_a_client_is_disconnected_when_its_token_is_gone() -> None:
    async def script() -> None:
        scene = Scene(OPS)
        await scene.send((b"AUTH", OPS.encode()))
        service = scene.connection._service
        web = make_token("web", Role.DATA, WEB)
        service.renew(Tokens([make_token("default", Role.ADMIN, OPS), web]))
        assert not scene.transport.is_closed
        service.renew(Tokens([web]))
        assert scene.transport.is_closed

    asyncio.run(script())


def test_without_tokens_every_client_is_an_administrator() -> None:
    assert NOBODY.role is Role.ADMIN
