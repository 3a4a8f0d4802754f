"""Output of the command line: tables, errors as one line, exit codes.

0  success
1  failure: the error line says what failed, and what to do next
2  wrong usage or a wrong setting; or the outcome of the command is unknown
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import typer
from rich.console import Console
from rich.table import Table

from raftha.errors import ConfigError, Indeterminate, InvalidRequest, RafthaError

UNSEEN_WIDTH = 200


@contextlib.contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turn errors of raftha and of the system into a line on stderr and an exit code."""
    try:
        yield
    except BrokenPipeError as error:
        # The reader has closed the pipe. Python must not complain when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    except (ConfigError, InvalidRequest, Indeterminate) as error:
        fail(error, 2)
    except (RafthaError, OSError) as error:
        fail(error, 1)


def fail(error: Exception, code: int) -> NoReturn:
    """Print the error on stderr, and exit."""
    for line in (f"error: {error}", *(f"  {note}" for note in getattr(error, "__notes__", ()))):
        typer.echo("\n".join(map(printable, line.split("\n"))), err=True)
    raise typer.Exit(code)


def printable(text: object) -> str:
    """Text that came from a node, with control characters escaped: a terminal would obey them."""
    characters = str(text)
    if characters.isprintable():
        return characters
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in characters)


def console() -> Console:
    """The console for tables; wide if stdout is no terminal, which has no width of its own."""
    return Console(width=None if sys.stdout.isatty() else UNSEEN_WIDTH)


def print_table(table: Table) -> None:
    """Print a table on stdout."""
    console().print(table)
