"""Optional packages: an extra of the distribution installs them, such as `raftha[cli]`.

`import raftha` needs only the core's dependencies. A module that needs more imports it like this:

    with extra("client"):
        import hiredis

Then a caller without hiredis gets one line that names the extra to install, instead of a traceback.
Where such modules import each other, the error names the outermost extra, which includes the
others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ModuleNotFoundError):
    """A package that an extra of raftha installs is missing; the message names the extra."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import packages of the extra `name`; MissingExtra if one of them isn't installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "raftha":  # a module of raftha itself: no extra installs that
            raise
        raise MissingExtra(
            f"{package} is not installed: pip install 'raftha[{name}]'", name=error.name
        ) from None
