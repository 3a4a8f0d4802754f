"""The commands that change a cluster's members or leader: `raftha member add`, `member promote`,
`member move`, `member remove`, `raftha failover`, and `recover-quorum` for the loss of a majority.

Theory of operation. `member` and `failover` call any running node over its client port, and that
node asks the leader. `recover-quorum` works on the disk of a stopped node
(`raftha.runtime.quorum_recovery`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from raftha.cli.access import TlsCa, TokenFile
from raftha.cli.asking import AsJson, Asked, Config, Connect, ask, node_to_ask
from raftha.cli.console import errors_as_lines, print_table, printable
from raftha.cli.settings import read_config
from raftha.client.cluster_view import kind_of
from raftha.errors import ConfigError, InvalidRequest, RafthaError

if TYPE_CHECKING:
    from raftha.config import HaConfig
    from raftha.runtime.quorum_recovery import Plan

CHANGE_TIMEOUT_S = 310.0
"""A little longer than the server itself waits for a change."""
FAILOVER_TIMEOUT_S = 610.0
"""A little longer than a server's `request_timeout_s` can be."""
STATUS_TIMEOUT_S = 3.0

member = typer.Typer(
    help="Add a node to a running cluster, promote a standby, move or remove a node.",
    no_args_is_help=True,
    add_completion=False,
)

NodeId = Annotated[int, typer.Argument(min=1, help="The node's id.")]


# ------------------------------------------------------------------------------- member


@member.command()
def add(
    node_id: NodeId,
    address: Annotated[str, typer.Argument(help="host:port where it listens for the other nodes.")],
    *,
    region: Annotated[str, typer.Option(help="Its region. [the first of `regions`]")] = "",
    standby: Annotated[
        bool, typer.Option("--standby", help="It receives all the data and doesn't vote.")
    ] = False,
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Add a node, and wait until it has all the data and votes.

    Start it first. Its settings name the first members of the cluster, like those
    of every node, and, as it isn't one of them, its own address:

        node_id = 4
        address = "127.0.0.1:7104"
        listen = "127.0.0.1:7004"
        data_dir = "data-4"
        members.1 = "127.0.0.1:7101"
        members.2 = "127.0.0.1:7102"
        members.3 = "127.0.0.1:7103"

    raftha serve --config node-4.toml

    raftha member add 4 127.0.0.1:7104

    An id is never used twice, not even for the same machine with an empty disk.
    With --standby the node counts for no majority until it is promoted; this
    returns once it is a member.
    """
    from raftha.config import parse_address

    with errors_as_lines():
        parse_address("address", address)
        asked = node_to_ask(connect, config, token_file, tls_ca)
        options = ("STANDBY",) if standby else ()
        request = ("RAFTHA", "ADD", node_id, address, region, *options)
        ask(asked, request, CHANGE_TIMEOUT_S)
        kind = "standby" if standby else "voter"
        _tell(asked, f"node {node_id} is a {kind} now", as_json=as_json)


@member.command()
def promote(
    node_id: Annotated[int | None, typer.Argument(min=1, help="The standby's id.")] = None,
    *,
    region: Annotated[
        str | None, typer.Option(help="Instead: all learners of this region, one after another.")
    ] = None,
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Make a standby a voter, or all of a region; wait until they have all the data and vote.

    raftha member promote 4

    raftha member promote --region far

    A majority of the present voters must be up: this can't replace a lost one.
    After an error half way through a region, the nodes before it are voters;
    run the command again for the rest.
    """
    with errors_as_lines():
        if (node_id is None) == (region is None):
            raise ConfigError("promote takes a node's id, or --region")
        asked = node_to_ask(connect, config, token_file, tls_ca)
        if node_id is not None:
            ask(asked, ("RAFTHA", "PROMOTE", node_id), CHANGE_TIMEOUT_S)
            _tell(asked, f"node {node_id} is a voter now", as_json=as_json)
            return
        from raftha.config import MEMBERS_MAX

        assert region is not None
        timeout_s = MEMBERS_MAX * CHANGE_TIMEOUT_S  # The server's limit for each.
        promoted = ask(asked, ("RAFTHA", "PROMOTE", "REGION", region), timeout_s)
        ids = ", ".join(map(str, promoted))
        text = f"promoted: {ids}" if ids else f"all members in region {region!r} were voters before"
        _tell(asked, text, as_json=as_json)


@member.command()
def move(
    node_id: NodeId,
    *,
    address: Annotated[
        str | None, typer.Option(help="host:port where the other nodes reach it from now on.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="The region that it is in.")] = None,
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Change the address at which the others dial a member, or its region, or both.

    The member itself listens where its own settings say: after this, give it
    the new address there, and start it again.

    A majority must be up. If all addresses have changed, use `raftha move`.
    """
    from raftha.config import parse_address

    with errors_as_lines():
        place: list[str] = []
        if address is not None:
            parse_address("address", address)
            place += ["ADDRESS", address]
        if region is not None:
            place += ["REGION", region]
        if not place:
            raise ConfigError("move needs --address, or --region, or both")
        asked = node_to_ask(connect, config, token_file, tls_ca)
        ask(asked, ("RAFTHA", "MOVE", node_id, *place), CHANGE_TIMEOUT_S)
        _tell(asked, f"node {node_id} has moved", as_json=as_json)


@member.command()
def remove(
    node_id: NodeId,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be left.")
    ] = False,
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Remove a node for good, running or not; a leader first hands over leadership.

    Its id can't be used again, and its data can't rejoin. To replace a node that
    lost its disk, remove it and add a new one under another id.
    """
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        members = _members(asked)
        if dry_run:
            left = {i: m for i, m in members.items() if i != node_id}
            if left == members:
                raise InvalidRequest(f"node {node_id} is not a member")
            _show_members(left, f"without node {node_id} there would be", as_json=as_json)
            return
        ask(asked, ("RAFTHA", "REMOVE", node_id), CHANGE_TIMEOUT_S)
        _tell(asked, f"node {node_id} was removed", as_json=as_json)


def _members(asked: Asked) -> dict[int, dict[str, Any]]:
    status = json.loads(ask(asked, ("RAFTHA", "STATUS"), STATUS_TIMEOUT_S))
    return {replica["node_id"]: replica for replica in status["replicas"]}


def _tell(asked: Asked, text: str, *, as_json: bool) -> None:
    try:
        members = _members(asked)
    except RafthaError:
        # The change is done; the queried node itself may have been removed and stopped.
        typer.echo("{}" if as_json else printable(text))
        return
    _show_members(members, f"{text}; the members are", as_json=as_json)


def _show_members(members: Mapping[int, Mapping[str, Any]], text: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"members": list(members.values())}, indent=2))
        return
    voters = sum(replica["is_voter"] for replica in members.values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("node", "kind", "region", "address"):
        table.add_column(name, overflow="fold")
    for node_id, replica in sorted(members.items()):
        texts = (node_id, kind_of(replica), replica["region"], replica["address"])
        table.add_row(*(escape(printable(text)) for text in texts))
    typer.echo(f"{printable(text)}:")
    print_table(table)
    typer.echo(f"{voters // 2 + 1} of {voters} voters are a majority")


# ------------------------------------------------------------------------------- failover


def failover(
    node_id: NodeId,
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Make a voter the leader, also if no node leads, as with auto_failover = false.

    No write is lost. The command fails if no majority is up; it forces nothing.
    """
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        ask(asked, ("RAFTHA", "FAILOVER", node_id), FAILOVER_TIMEOUT_S)
        typer.echo(json.dumps({"leader_id": node_id}) if as_json else f"node {node_id} leads now")


# ------------------------------------------------------------------------------- recover-quorum


def recover_quorum(
    config: Annotated[Path, typer.Option(help="The survivor's settings, a TOML file.")],
    node_id: Annotated[int, typer.Option(help="The survivor's id, to confirm which node it is.")],
    data_dir: Annotated[
        Path | None, typer.Option(help="Its data directory, if not the one in the file.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would do.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Proceed even if enough others answer to be a majority."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make one stopped survivor the whole cluster, after a majority was lost FOR GOOD.

    Writes that the lost majority acknowledged and that are not in this node's
    log are LOST. Run it with --dry-run on every survivor, and choose the one
    whose log goes furthest. Never run it while the others may still be running
    where you can't see them: there would be two clusters.

    All other members are removed: wipe them, and add new ones with new ids.
    """
    from raftha.runtime.quorum_recovery import open_survivor

    with errors_as_lines(), open_survivor(node_config(config, node_id, data_dir)) as survivor:
        plan = survivor.plan()
        if not as_json:
            _show_plan(plan)
        if plan.is_quorum_there and not force:
            raise InvalidRequest(
                "so many others answer that there may be a majority",
                hint="start this node instead; or use --force if other programs answer there",
            )
        if not dry_run and not yes:
            raise InvalidRequest("nothing was changed", hint="--yes does it")
        record = None if dry_run else str(survivor.recover(plan))
        if as_json:
            typer.echo(json.dumps({**plan.as_dict(), "record": record}, indent=2))
        elif record:
            typer.echo(f"Done; {record} says what. Start the node, then add new ones.")


def node_config(path: Path, node_id: int, data_dir: Path | None) -> HaConfig:
    """Return the settings of a stopped node from its file, which must be node `node_id`'s."""
    config = read_config(path, data_dir)
    if config.node_id != node_id:
        raise ConfigError(f"{path} is node {config.node_id}'s, not node {node_id}'s")
    return config


def _show_plan(plan: Plan) -> None:
    when = f", written {plan.last_time}" if plan.last_time else ""
    echo = typer.echo
    echo(f"Node {plan.node_id} of cluster {plan.cluster_id}, in {plan.data_dir}")
    echo(f"  its log ends with entry {plan.last_index} of term {plan.last_term}{when},")
    echo(f"  after command {plan.last_sequence}; known to be committed: {plan.commit_index}")
    if plan.is_healing:
        echo("  IT HAS LOST ITS LOG, AND MAY LACK WHAT OTHERS HAVE: choose another one if you can")
    if not plan.was_voter:
        echo("  IT IS A LEARNER and may lack much of what was acknowledged")
    echo("LOST will be every write that is not in this log, acknowledged or not.")
    echo(f"Entry {plan.index} of term {plan.term} will make it the only member. Removed for good:")
    for lost in plan.lost:
        kind = "voter" if lost.is_voter else "learner"
        answer = "SOMETHING ANSWERS THERE" if lost.answers else "doesn't answer"
        echo(f"  node {lost.node_id}, {kind}, {lost.address}: {answer}")
    echo("They must never run again with their data: wipe them.")
