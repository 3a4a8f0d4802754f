"""The command `raftha`: run a node, inspect a cluster, watch a failover.

Theory of operation. Each command works through the library. It prints tables by default and one
JSON document with `--json`, always to stdout; logs, progress and errors go to stderr. Exit codes
are those of `raftha.cli.console`.

Commands import their modules when they run, so that `raftha --help` is fast.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raftha.cli import recovery
from raftha.cli.backup import backup as backup_commands
from raftha.cli.console import errors_as_lines, print_table
from raftha.cli.digest import digest
from raftha.cli.events import events
from raftha.cli.founding import init
from raftha.cli.membership import failover, member, recover_quorum
from raftha.cli.moving import move
from raftha.cli.restore import restore
from raftha.cli.skipping import skip_entry
from raftha.cli.status import status
from raftha.errors import ConfigError, RafthaError
from raftha.runtime.logs import LEVELS, log_to_stderr
from raftha.version import VERSION

if TYPE_CHECKING:
    from raftha.net.certificates import Made

PROBLEMS_SHOWN = 5

app = typer.Typer(
    name="raftha",
    help="Keep a server process highly available: replicated, durable state through a Raft log.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(member, name="member")
app.add_typer(backup_commands, name="backup")
app.add_typer(restore, name="restore")
app.command()(failover)
app.command()(init)
app.command()(move)
app.command("recover-quorum")(recover_quorum)
app.command("skip-entry")(skip_entry)
app.command()(status)
app.command()(events)
app.command()(digest)
app.command()(recovery.recover)
app.command()(recovery.drill)
backup_commands.command()(recovery.mark)
backup_commands.command()(recovery.points)
backup_commands.command()(recovery.checkpoint)


def main() -> None:
    """Run the command line; ends the process with one of the exit codes of `raftha.cli.console`."""
    app()


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"raftha {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it and exit."
        ),
    ] = False,
) -> None:
    pass


# ------------------------------------------------------------------------------- serve


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The node's settings, a TOML file.")],
    log_level: Annotated[str, typer.Option(help=f"One of {', '.join(LEVELS)}.")] = "info",
) -> None:
    """Run one node until SIGTERM or Ctrl-C, serving the Redis protocol."""
    with errors_as_lines():
        if sys.flags.optimize:
            raise ConfigError(
                "python -O removes the checks that keep a node from corrupting data",
                hint="start it without -O and PYTHONOPTIMIZE",
            )
        if log_level not in LEVELS:
            raise ConfigError(f"log level {log_level!r} is not one of {', '.join(LEVELS)}")
        from raftha.server import ServerConfig, run

        server_config = ServerConfig.from_toml(config)
        log_to_stderr(log_level, server_config.log_format)
        run(server_config)


# ------------------------------------------------------------------------------- cert

cert = typer.Typer(help="Make the certificates for TLS between nodes.", no_args_is_help=True)
app.add_typer(cert, name="cert")

Out = Annotated[Path, typer.Option(help="The folder to write to; no file is overwritten.")]
Days = Annotated[
    int | None, typer.Option(help="How long it is valid: 10 years for a CA, 825 days for a node.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@cert.command("ca")
def make_ca(
    cluster: Annotated[str, typer.Option(help="The cluster's name: the nodes' cluster_name.")],
    out: Out,
    days: Days = None,
    as_json: AsJson = False,
) -> None:
    """Make the CA of a cluster: ca.crt, for every node, and ca.key, to keep off the nodes."""
    from raftha.net import certificates

    with errors_as_lines():
        valid = certificates.CA_DAYS if days is None else days
        _show_made(certificates.make_ca(cluster, out, valid), as_json)


@cert.command("node")
def make_node(
    ca: Annotated[Path, typer.Option(help="The folder with ca.crt and ca.key.")],
    node_id: Annotated[int, typer.Option(help="The only node that can use the certificate.")],
    out: Out,
    days: Days = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or IP address of the node, for its client port; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a node's certificate: node-ID.crt and node-ID.key, with a copy of ca.crt."""
    from raftha.net import certificates

    with errors_as_lines():
        valid = certificates.NODE_DAYS if days is None else days
        _show_made(certificates.make_node(ca, node_id, out, valid, host or ()), as_json)


def _show_made(made: Made, as_json: bool) -> None:
    paths = {"certificate": str(made.certificate), "key": str(made.key), "ca": str(made.ca)}
    if as_json:
        typer.echo(json.dumps({**paths, "expires": made.expires.isoformat()}, indent=2))
    else:
        typer.echo(f"wrote {made.certificate} and {made.key}, valid until {made.expires:%Y-%m-%d}")


# ------------------------------------------------------------------------------- demo


@app.command()
def demo(
    source: Annotated[
        Path | None,
        typer.Option("--input", help="A .csv, .jsonl or .txt file, whose rows become the records."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=3, max=9, help="How many nodes to run.")] = 3,
    backup: Annotated[
        bool, typer.Option("--backup", help="Then back it up, wipe all nodes, and restore them.")
    ] = False,
    disaster: Annotated[
        bool, typer.Option("--disaster", help="Then damage the data, and take the cluster back.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Load a real data set into real processes, kill the leader half way, and check every record.

    By default the data is the Unicode character database that ships with Python,
    one record for each named character. Exit code 1 if an acknowledged record is
    lost or wrong, or if a copy differs.
    """
    from raftha.cli.demo import render, run_demo

    # SIGTERM from a service manager or `timeout` must clean up as Ctrl-C does, also where SIGINT is
    # ignored: a shell without job control starts its background jobs like that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with errors_as_lines():
        show = sys.stderr.isatty()
        report = run_demo(
            source,
            nodes=nodes,
            show_progress=show,
            with_backup=backup,
            with_disaster=disaster,
        )
        if as_json:
            typer.echo(json.dumps(report.as_dict(), indent=2))
        else:
            print_table(render(report))
        if not report.ok:
            raise RafthaError("the demo failed", hint="; ".join(report.problems[:PROBLEMS_SHOWN]))
