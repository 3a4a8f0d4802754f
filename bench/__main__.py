"""`python -m bench QUESTION`: measure; `compare` two results, `report` some as a page."""

from __future__ import annotations

import argparse
import resource
import runpy
import sys
from importlib import import_module

from bench.question import Run, add_shared_options
from bench.tables import show

QUESTIONS = {
    "throughput": "bench.throughput",
    "latency": "bench.latency",
    "reads": "bench.reads",
    "lag": "bench.lag",
    "failover": "bench.failovers",
    "recovery": "bench.recovery",
    "scale": "bench.scale",
    "limit": "bench.limit",
}
PROGRAMS = ("compare", "report", "catchup", "soak", "writes")
"""With command lines of their own."""


def main(arguments: list[str]) -> None:
    """Run one of them."""
    name = arguments[0] if arguments else ""
    if name in PROGRAMS:
        sys.argv = [f"python -m bench {name}", *arguments[1:]]
        runpy.run_module(f"bench.{name}", run_name="__main__")
    elif name in QUESTIONS:
        measure(name, arguments[1:])
    else:
        names = ",".join((*QUESTIONS, *PROGRAMS))
        print(f"usage: python -m bench {{{names}}} [--help] ...", file=sys.stderr)
        sys.exit(0 if name in ("-h", "--help") else 2)


def measure(name: str, arguments: list[str]) -> None:
    """Put one question."""
    question = import_module(QUESTIONS[name])
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}",
        description=question.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shared_options(parser)
    question.add_options(parser)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # Each caller may be a connection.
    run = Run(name, parser.parse_args(arguments))
    try:
        with run:
            question.ask(run)
    finally:
        if run.options.json:
            run.results.write(run.options.json)
    show(run.results)
    sys.exit(bool(run.results.failed))


if __name__ == "__main__":
    main(sys.argv[1:])
