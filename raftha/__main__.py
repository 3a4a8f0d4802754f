"""The command `raftha`, also run as `python -m raftha`."""

from __future__ import annotations

import sys

from raftha.extras import MissingExtra, extra


def main() -> None:
    """Run the command line, or exit with the command that installs what it needs."""
    try:
        with extra("cli"):
            from raftha.cli import main as run
        run()
    except MissingExtra as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
