"""Bugs to plant in how versions of the program are told apart. See `bugs.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raftha.errors import InvalidRequest
from raftha.node.upgrades import Call, Upgrades
from raftha.storage.state import machine as machine_module
from raftha.storage.state.machine import Result, StateMachine, Transaction
from raftha.storage.state.versions import Abilities, Versions, common
from tests.sim.builds import Builds
from tests.sim.planting import Bug, Patch


def _own_are_enough(self: Upgrades) -> Versions | None:
    used, own = self._state.versions, common([self._state.abilities])
    assert own is not None
    return own if used is None else used.raised(own)


def _run_whatever_is_used(self: Abilities, used: Versions) -> None:
    """Nothing is refused."""


def members_not_asked() -> list[Patch]:
    """The leader raises the versions to what it supports itself, and asks no member."""
    return [(Upgrades, "_supported_by_all", _own_are_enough)]


def unknown_command_is_a_failure() -> list[Patch]:
    """A leader asks no member; a node records a failure for a command that it doesn't know."""
    original = machine_module._call

    def call(txn: Transaction, machine: StateMachine | None, name: Any, args: Any) -> Result | None:
        if machine is None or name not in machine.commands:
            raise InvalidRequest(f"unknown command {name!r}")
        return original(txn, machine, name, args)

    return [
        (Upgrades, "_supported_by_all", _own_are_enough),
        (Abilities, "check", _run_whatever_is_used),
        (machine_module, "_call", call),
        *_unwatched(),
    ]


def version_lowered() -> list[Patch]:
    """The versions of an entry replace higher ones before it."""

    def raised(self: Versions, other: Versions) -> Versions:
        return other

    def supported_by_connected(self: Upgrades) -> Versions | None:
        known = [a for member, a in self._supported.items() if member in self._others()]
        return common([self._state.abilities, *known])

    return [
        (Versions, "raised", raised),
        (Upgrades, "_supported_by_all", supported_by_connected),
        *_unwatched(),
    ]


def own_version_decides() -> list[Patch]:
    """A command does as its own build would, whatever version the cluster uses."""
    return [(Transaction, "machine_version", property(lambda self: 2))]


def old_build_runs() -> list[Patch]:
    """A node takes part although the cluster uses what its build doesn't have."""
    return [(Abilities, "check", _run_whatever_is_used)]


def call_not_checked() -> list[Patch]:
    """A call enters the log though not all members are known to know the command."""

    def admit(self: Upgrades, calls: Iterable[Call]) -> None:
        for call in calls:
            self._writes.add_checked(call)

    return [(Upgrades, "admit", admit)]


def _unwatched() -> list[Patch]:
    """Without the check that would find it first: the states must show it."""

    return [(Builds, "check_raised", lambda self, used, members: None)]


BUGS: tuple[Bug, ...] = (
    members_not_asked,
    unknown_command_is_a_failure,
    version_lowered,
    own_version_decides,
    old_build_runs,
    call_not_checked,
)
