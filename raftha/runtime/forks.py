"""What becomes of a node when the process it lives in forks.

Theory of operation. A fork copies all memory and one thread, the one that called it. So the child
has a node's objects without the node: whoever calls them there is told so (`Forked`), by a
comparison of process ids, since no lock may be taken that a thread that isn't there could hold.

What the child does share with its parent are descriptors, and those would do damage if the child
outlived it: the data directory would stay locked and the port taken, so that the node couldn't be
started again, and its connections would stay open, so that its peers wouldn't notice its end. So in
the child (`os.register_at_fork`) /dev/null takes the place of every descriptor of a node. Takes the
place, and not: is closed. Whoever owns the number, in Python or in C, may close it at any time
later, and a number that was free would belong to somebody else by then.

Which they are is asked of the kernel, because another thread may have been opening one just now:
files in the node's own folder, and all that its event loop watched. What that loop had accepted or
begun to dial within the same turn escapes; it costs the peers a time-out instead of a reset.

The node's objects are neither used nor freed in the child, ever: LMDB forbids both across a fork,
and an event loop that is freed would speak to the epoll instance that it shares with the parent's.
For LMDB the child still has these files open, so it can't open that data directory anew either,
not even after its parent's end; other nodes can be started there.

Processes started by `subprocess`, or `multiprocessing` other than by fork, have none of this: all
descriptors are closed at an exec.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_OWN_NAMES = ("LOCK", "identity", "wal", "state", "outgoing", "incoming")
"""How names in a data directory begin; the host may have put other files there."""


class _Node(NamedTuple):
    folder: str
    epoll: int


_nodes: dict[object, _Node] = {}
_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_inherited: dict[object, str] = {}
"""Nodes of the processes above this one and their folders; kept, so that nothing frees them."""


def add_node(owner: object, data_dir: Path, epoll: int) -> None:
    """`owner` has files in `data_dir`, and whatever else the event loop behind `epoll` watches."""
    _nodes[owner] = _Node(os.path.realpath(data_dir), epoll)


def remove_node(owner: object) -> None:
    """It has closed everything."""
    _nodes.pop(owner, None)


def is_inherited(data_dir: Path) -> bool:
    """Whether a node had it open when this process was forked; then it can't be opened here."""
    return os.path.realpath(data_dir) in _inherited.values()


def renew_in_child(owner: T, renew: Callable[[T], None]) -> None:
    """Call `renew` with `owner` in a forked process: it has locks that nobody there gives back."""
    _renewals[owner] = renew


def _after_in_child() -> None:
    nodes = dict(_nodes)
    _nodes.clear()
    _inherited.update((owner, node.folder) for owner, node in nodes.items())
    for owner, renew in list(_renewals.items()):
        renew(owner)
    doomed = {fd for node in nodes.values() for fd in (node.epoll, *_watched_by(node.epoll))}
    doomed |= _files_in([node.folder for node in nodes.values()])
    if not doomed:
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in doomed:
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


def _watched_by(epoll: int) -> list[int]:
    try:
        text = Path(f"/proc/self/fdinfo/{epoll}").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(fd) for fd in re.findall(r"^tfd:\s*(\d+)", text, re.MULTILINE)]


def _files_in(folders: list[str]) -> set[int]:
    prefixes = tuple(os.path.join(folder, name) for folder in folders for name in _OWN_NAMES)
    if not prefixes:
        return set()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # The one that reads this listing is gone by now.
            if os.readlink(f"/proc/self/fd/{name}").startswith(prefixes):
                found.add(int(name))
    return found


os.register_at_fork(after_in_child=_after_in_child)
