"""The command line."""

from raftha.cli.app import main

__all__ = ["main"]
