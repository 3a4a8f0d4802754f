"""The command `raftha`, also as `python -m raftha`."""

from __future__ import annotations

import sys

from raftha.extras import MissingExtra, extra


def main() -> None:
    """Run the command line, or say how to install it: it needs packages that the core doesn't."""
    try:
        with extra("cli"):
            from raftha.cli import main as run
    except MissingExtra as error:
        sys.exit(f"error: {error}")
    run()


if __name__ == "__main__":
    main()
