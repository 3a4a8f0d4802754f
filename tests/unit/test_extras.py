"""What works without the packages of the extras, and the error where one is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raftha.extras import MissingExtra, extra

REPOSITORY = Path(__file__).parents[2]
OPTIONAL = ("click", "cryptography", "hiredis", "obstore", "prometheus_client", "rich", "typer")


def run_without(packages: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, where `packages` can't be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({packages!r})); "
    return subprocess.run(
        [sys.executable, "-c", hide + code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_core_needs_no_extra() -> None:
    modules = (
        "raftha, raftha.aio, raftha.config, raftha.events, raftha.storage, raftha.testing, "
        "raftha.storage.backup.destinations, raftha.storage.backup.frames"
    )
    ran = run_without(OPTIONAL, f"import {modules}; raftha.HaManager, raftha.aio.HaManager")
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("code", "package", "name"),
    [
        ("import raftha.client", "hiredis", "client"),
        ("import raftha.server", "hiredis", "server"),
        ("import raftha.metrics", "prometheus_client", "metrics"),
        ("import raftha.net.certificates", "cryptography", "cli"),
        (
            "from raftha.storage.backup.crypto import aes_gcm; aes_gcm(b'')",
            "cryptography",
            "backup",
        ),
        ("import raftha.testing; raftha.testing.LocalCluster()", "hiredis", "server"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    code: str, package: str, name: str
) -> None:
    ran = run_without(OPTIONAL, code)
    said = f"raftha.extras.MissingExtra: {package} is not installed: pip install 'raftha[{name}]'"
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == said
    assert ran.stderr.count("Traceback") == 1  # the cause isn't shown too


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("rich", "--help"),
        ("typer", "--help"),
        ("hiredis", "status 127.0.0.1:1"),
        ("cryptography", "cert ca --cluster c --out /nowhere"),
    ],
)
def test_a_command_says_in_one_line_what_to_install(package: str, arguments: str) -> None:
    run = f"sys.argv[1:] = {arguments!r}.split(); from raftha.__main__ import main; main()"
    ran = run_without((package,), run)
    said = f"error: {package} is not installed: pip install 'raftha[cli]'\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", said)


def test_serve_with_metrics_says_what_is_missing_before_the_node_starts(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        'node_id = 1\ndata_dir = "data"\nlisten = "127.0.0.1:0"\n'
        'metrics_listen = "127.0.0.1:1"\n[members]\n1 = "127.0.0.1:7"\n'
    )
    serve = f"sys.argv = ['raftha', 'serve', '--config', {str(config)!r}]; "
    code = serve + "from raftha.__main__ import main; main()"
    ran = run_without(("prometheus_client",), code)
    said = "error: prometheus_client is not installed: pip install 'raftha[metrics]'"
    assert (ran.returncode, ran.stdout, ran.stderr.splitlines()[-1]) == (1, "", said)
    assert not (tmp_path / "data").exists()


def test_a_missing_module_of_raftha_itself_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"raftha\.nowhere") as raised, extra("cli"):
        __import__("raftha.nowhere")
    assert not isinstance(raised.value, MissingExtra)


def test_the_outermost_extra_is_the_one_that_is_named() -> None:
    message = r"^no_such_package is not installed: pip install 'raftha\[server\]'$"
    with pytest.raises(MissingExtra, match=message) as raised, extra("server"), extra("client"):
        __import__("no_such_package.part")
    assert raised.value.name == "no_such_package"
