"""The optional packages: an extra of the distribution brings them, such as `raftha[cli]`.

`import raftha` needs only the core's dependencies. A module that needs more imports it like this:

    with extra("client"):
        import hiredis

Then a caller without hiredis gets one line that says what to install, not a traceback to interpret.
Where such modules import each other, the outermost extra is the one named: it brings the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ModuleNotFoundError):
    """A package is missing that an extra of raftha brings; the message says which."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import what the extra `name` brings; MissingExtra if a package of it isn't installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "raftha":  # a module of our own: no extra brings that
            raise
        raise MissingExtra(
            f"{package} is not installed: pip install 'raftha[{name}]'", name=error.name
        ) from None
