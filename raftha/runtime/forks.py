"""What happens to a node when its process forks.

Theory of operation. A fork copies all memory, but only the thread that called it. So the child has
a node's objects without the node. Calls to them raise `Forked`. They detect the child by its
process id, since they must not take a lock that a missing thread may hold.

The child shares its parent's file descriptors, which would do damage if the child outlived the
parent. The data directory would stay locked and the port in use, so the node couldn't be started
again; and its connections would stay open, so its peers wouldn't notice its end. So in the child
(`os.register_at_fork`), /dev/null replaces every descriptor of a node. The descriptors are replaced
and not closed because the code that owns a number, in Python or in C, may close it later. By then,
a freed number could belong to another file.

The kernel lists the descriptors, because another thread may have been opening one at the fork:
the node's own folder, files in it, and everything that its event loop watched. Connections that the
loop accepted or dialled within the same turn are missed; their peers get a time-out instead of a
reset.

The child neither uses nor frees the node's objects, ever. LMDB forbids both across a fork, and
freeing the event loop would change the epoll instance that it shares with the parent's loop. LMDB
considers these files open in the child. So the child can't open that data directory, not even after
its parent's end; it can start other nodes.

Processes started by `subprocess`, or by `multiprocessing` without fork, need none of this: an exec
closes all descriptors.
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
"""Prefixes of a node's own names in its data directory; it may contain other files."""


class _Node(NamedTuple):
    folder: str
    epoll: int


_nodes: dict[object, _Node] = {}
_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_inherited: dict[object, str] = {}
"""Nodes of this process's ancestors and their folders; kept so that they are never freed."""


def add_node(owner: object, data_dir: Path, epoll: int) -> None:
    """`owner` holds files in `data_dir`, and everything that the loop behind `epoll` watches."""
    _nodes[owner] = _Node(os.path.realpath(data_dir), epoll)


def remove_node(owner: object) -> None:
    """`owner` has closed everything."""
    _nodes.pop(owner, None)


def is_inherited(data_dir: Path) -> bool:
    """True if a node had `data_dir` open when this process was forked: it can't be opened here."""
    return os.path.realpath(data_dir) in _inherited.values()


def renew_in_child(owner: T, renew: Callable[[T], None]) -> None:
    """Call `renew` with `owner` in a forked process, where its locks may be held for ever."""
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
        with suppress(OSError):  # The descriptor that read this listing is closed by now.
            path = os.readlink(f"/proc/self/fd/{name}")
            if path in folders or path.startswith(prefixes):
                found.add(int(name))
    return found


os.register_at_fork(after_in_child=_after_in_child)
