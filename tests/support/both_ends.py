"""How two workers of pytest-xdist share the tests: `pytest -n 2`.

One takes files from the front, where those that wait for processes, disks and clocks are, and the
other from the end, where those are that compute. They meet in the middle. Each file stays whole,
since its tests may share processes. Files that use fixed ports stay together.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

FIXED_PORTS = ("tests/integration/test_documents.py", "tests/integration/test_quickstart.py")
"""Their tests fail where `check_ports` finds that another program has a document's ports."""


class BothEnds(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """See the module's docstring. Needs `--no-loadscope-reorder`."""

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        return FIXED_PORTS[0] if scope in FIXED_PORTS else scope

    def _assign_work_unit(self, node: Any) -> None:
        if node is not self.nodes[0]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)
