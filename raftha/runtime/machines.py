"""Finds the user's state machine by name, where no program hands it over: on the command line."""

from __future__ import annotations

import importlib
import sys
from functools import reduce
from pathlib import Path

from raftha.errors import ConfigError
from raftha.storage.state.machine import StateMachine

FORM = "module:Class, such as shop.machine:ShopMachine"


def load_machine(spec: str) -> StateMachine:
    """Make the state machine that `spec` names, `module:Class`. ConfigError.

    The module is imported, so the name must come from the operator, never from a repository. It is
    looked for in the working directory too, as by `python -m`.
    """
    module_name, colon, class_name = spec.partition(":")
    if not (colon and module_name and all(part.isidentifier() for part in class_name.split("."))):
        raise ConfigError(f"{spec!r:.100} names no state machine", hint=f"give {FORM}")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found: object = importlib.import_module(module_name)
        found = reduce(getattr, class_name.split("."), found)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"can't find the state machine {spec}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, StateMachine)):
        raise ConfigError(f"{spec} is no class that is derived from raftha.StateMachine")
    try:
        return found()
    except TypeError as error:
        raise ConfigError(
            f"can't make the state machine {spec}: {error}",
            hint="name a class that needs no arguments; derive one that gives them",
        ) from error
