"""How the command line speaks: tables for people, errors as one line, exit codes.

0  it worked
1  it failed: the error line says what, and what to do next
2  wrong usage or a wrong setting; or it is unknown whether it happened
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
    """Turn raftha's errors, and the system's, into a line on stderr and an exit code."""
    try:
        yield
    except BrokenPipeError as error:
        # Whoever read it has seen enough; nor must Python complain as it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    except (ConfigError, InvalidRequest, Indeterminate) as error:
        fail(error, 2)
    except (RafthaError, OSError) as error:
        fail(error, 1)


def fail(error: Exception, code: int) -> NoReturn:
    """Say what is wrong, on stderr, and exit."""
    typer.echo(f"error: {error}", err=True)
    for note in getattr(error, "__notes__", ()):
        typer.echo(f"  {note}", err=True)
    raise typer.Exit(code)


def console() -> Console:
    """Where to print for people: wide, if nobody watches who could make the window wider."""
    return Console(width=None if sys.stdout.isatty() else UNSEEN_WIDTH)


def print_table(table: Table) -> None:
    """Print for people."""
    console().print(table)
