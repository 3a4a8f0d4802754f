"""The command `raftha`, also as `python -m raftha`."""

from __future__ import annotations

import sys

from raftha.extras import MissingExtra, extra


def main() -> None:
    """Run the command line, or say how to install what it needs beyond the core."""
    try:
        with extra("cli"):
            from raftha.cli import main as run
        run()
    except MissingExtra as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
