"""Bugs to plant: each breaks one rule of the real code, and the simulation must notice.

Theory of operation. A bug is a function named after what goes wrong; its docstring says what that
is and which rule it breaks (docs/ARCHITECTURE.md lists them), and it returns the attributes to
replace. `planted` puts them in place and takes them out again. They live in this process only: a
simulation that finds nothing is worth as much as the bugs that it would have found.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from tests.sim import (
    bugs_archive,
    bugs_backup,
    bugs_clock,
    bugs_disk,
    bugs_found,
    bugs_ha,
    bugs_heal,
    bugs_lease,
    bugs_own,
    bugs_raft,
    bugs_recovery,
    bugs_versions,
)
from tests.sim.planting import Bug, patched

BUGS: dict[str, Bug] = {
    bug.__name__: bug
    for module in (
        bugs_raft,
        bugs_found,
        bugs_own,
        bugs_disk,
        bugs_heal,
        bugs_ha,
        bugs_lease,
        bugs_versions,
        bugs_clock,
        bugs_backup,
        bugs_archive,
        bugs_recovery,
    )
    for bug in module.BUGS
}


def planted(name: str) -> AbstractContextManager[None]:
    """Have the bug `name` in the code; "" for none."""
    return patched(BUGS[name]() if name else [])
