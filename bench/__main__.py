"""`python -m bench QUESTION`: measure; `compare` two results, `report` some as a page."""

from __future__ import annotations

import argparse
import resource
import sys
from importlib import import_module

from bench import peers
from bench.harness.question import Run, add_shared_options
from bench.harness.tables import show

QUESTIONS = {
    "throughput": "durable writes a second, by number of callers",
    "latency": "how long writes take at fixed rates",
    "reads": "reads a second: linearizable, leased and stale",
    "lag": "how far behind each replica is: under load, and around a pause",
    "failover": "how long writes stop when the leader is killed, paused, cut off, or hands over",
    "recovery": "how long a restart takes: of one node, of all, and through a snapshot",
    "backup": "how fast and how large backups are, and what the spool costs writes",
    "restore": "how fast a backup is restored, and how fast log is replayed",
    "rpo": "how old what the archive lacks is, what it costs writes, and what an outage does",
    "scale": "what changes with the number of keys, and of nodes",
    "limit": "what would be possible without Raft and LMDB",
}
"""Each is a module of `bench.questions`, with a line for the list. Results go to a file."""
ALONE = {
    "writes": "durable writes a second of raftha alone, by number of callers",
    "catchup": "what writes notice while a node catches up through a snapshot",
    "soak": "elections under full load beside a busy process: there should be none",
}
"""The same, but they print a report of their own, which can't be compared."""
READERS = {
    "compare": "faster, slower, or no difference: two results files",
    "report": "a page with plots and tables of results files",
}
"""Modules of `bench.harness`."""


def main(arguments: list[str]) -> None:
    """Run one of them."""
    name = arguments[0] if arguments else ""
    if name in QUESTIONS:
        measure(name, arguments[1:])
    elif name in ALONE:
        run(f"bench.questions.{name}", name, arguments[1:])
    elif name in READERS:
        run(f"bench.harness.{name}", name, arguments[1:])
    elif name in ("-h", "--help"):
        print(usage())
    else:
        print(usage(), file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    """All that there is, with a line each."""
    parts = ["usage: python -m bench QUESTION [options]"]
    for title, commands in (
        ("Questions; --json FILE keeps the results:", QUESTIONS),
        ("Questions that print a report of their own:", ALONE),
        ("Read results:", READERS),
    ):
        lines = (f"  {name:10}  {says}" for name, says in commands.items())
        parts.append("\n".join((title, *lines)))
    parts.append("`python -m bench QUESTION --help` lists a question's options.")
    return "\n\n".join(parts)


def run(module: str, name: str, arguments: list[str]) -> None:
    """Run one that prints what it finds."""
    program = import_module(module)
    parser = make_parser(name, program.__doc__)
    program.add_options(parser)
    program.main(parser.parse_args(arguments))


def measure(name: str, arguments: list[str]) -> None:
    """Ask one question."""
    question = import_module(f"bench.questions.{name}")
    parser = make_parser(name, question.__doc__)
    add_shared_options(parser)
    parser.set_defaults(peer=[], only=[])  # Where a question doesn't have these options.
    question.add_options(parser)
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # Each caller may be a connection.
    asked = Run(name, options, peers.find(options.peer))
    try:
        with asked:
            question.ask(asked)
    finally:
        if options.json:
            asked.results.write(options.json)
    show(asked.results)
    sys.exit(bool(asked.results.failed))


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The command line of one of them."""
    return argparse.ArgumentParser(
        prog=f"python -m bench {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
