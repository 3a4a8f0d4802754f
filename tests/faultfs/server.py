"""One mounted file system: requests from the kernel, a `Tree` to do them on, faults in between.

Theory of operation. One event loop, no locks: the kernel's requests and the test's commands are
done one after the other, each at once, except operations that a fault makes wait. Those are held
and done later; meanwhile everything else goes on. Writes come here as they are made, since the
kernel is not told to cache them (no FUSE_WRITEBACK_CACHE); what it does cache is what was read and
written, for memory maps too. Pages that a process changed through a shared map come as writes when
the kernel sees fit, at the latest when the file system is unmounted: never with a sync.

To lose power: the processes that use the file system are dead; it is unmounted, so that no cache of
the kernel survives; the tree becomes what is on the platter; it is mounted again.

A waiting operation ends with EINTR if its process is killed, because no process on Linux ends
before its requests do.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from tests.faultfs import protocol
from tests.faultfs.faults import FOR_EVER_S, Fault
from tests.faultfs.protocol import Opcode, Request
from tests.faultfs.tree import File, Folder, Node, Tree

_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_DETACH = 2
_UNMOUNT_TIMEOUT_S = 10.0
_BATCH_MAX = 64
_libc = ctypes.CDLL(None, use_errno=True)


class Server:
    """The file system at `mount_point`, an empty folder."""

    def __init__(self, mount_point: Path) -> None:
        self.tree = Tree()
        self.faults: list[Fault] = []
        self.counts: dict[str, list[int]] = {}
        """By "operation path": how often it was done, and how often it failed."""
        self._mount_point = mount_point
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(protocol.REQUEST_BYTES_MAX)
        self._held: dict[int, tuple[asyncio.TimerHandle | None, Callable[[int], None]]] = {}
        self._fuse = -1

    # ---------------------------------------------------------------- life

    def mount(self) -> None:
        """Mount it; OSError if that isn't allowed."""
        self._nodes: dict[int, Node] = {self.tree.root.id: self.tree.root}
        self._lookups: dict[int, int] = {}
        self._fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
        result = _libc.mount(
            b"faultfs",
            os.fsencode(self._mount_point),
            b"fuse.faultfs",
            _MS_NOSUID | _MS_NODEV,
            options.encode(),
        )
        if result:
            code = ctypes.get_errno()
            os.close(self._fuse)
            raise OSError(code, f"mounting {self._mount_point}: {os.strerror(code)}")
        self._loop.add_reader(self._fuse, self._on_readable)

    def unmount(self) -> None:
        """Unmount it; processes that still use it get errors."""
        _libc.umount2(os.fsencode(self._mount_point), _MNT_DETACH)
        self._disconnect()

    async def lose_power(self, seed: int, chance: float | None = None) -> None:
        """Forget what wasn't synced, or parts of it. No process may be using the file system."""
        # Not on this thread: the kernel writes its cache back, and waits for the replies.
        await self._loop.run_in_executor(None, self._unmount_unused)
        self._disconnect()
        self.tree.lose_power(Random(seed), chance)
        self.mount()

    def _unmount_unused(self) -> None:
        deadline = time.monotonic() + _UNMOUNT_TIMEOUT_S
        while _libc.umount2(os.fsencode(self._mount_point), 0):
            code = ctypes.get_errno()
            if code != errno.EBUSY or time.monotonic() > deadline:
                raise OSError(code, f"unmounting {self._mount_point}: {os.strerror(code)}")
            time.sleep(0.01)  # The last of its users is just ending.

    def _disconnect(self) -> None:
        self._loop.remove_reader(self._fuse)
        os.close(self._fuse)
        for timer, _ in self._held.values():
            if timer is not None:
                timer.cancel()
        self._held.clear()

    def set_faults(self, faults: list[Fault]) -> None:
        """Replace all faults by these; operations that wait are done at once."""
        self.faults = faults
        for unique in list(self._held):
            self._release(unique)

    # ---------------------------------------------------------------- requests

    def _on_readable(self) -> None:
        for _ in range(_BATCH_MAX):
            try:
                count = os.readv(self._fuse, [self._buffer])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # A request that was interrupted before it was read.
                if error.errno != errno.ENODEV:
                    raise
                self._loop.remove_reader(self._fuse)  # Unmounted; the rest is on its way.
                return
            with memoryview(self._buffer)[:count] as frame:
                self._on_request(protocol.decode(frame))

    def _on_request(self, request: Request) -> None:
        match request.opcode:
            case Opcode.FORGET:
                self._forget(request.node, protocol.numbers(request.body, "Q")[0])
            case Opcode.BATCH_FORGET:
                (count,) = protocol.numbers(request.body, "I")
                pairs = protocol.numbers(request.body[8:], f"{2 * count}Q")
                for i in range(count):
                    self._forget(pairs[2 * i], pairs[2 * i + 1])
            case Opcode.INTERRUPT:
                self._release(protocol.numbers(request.body, "Q")[0], errno.EINTR)
            case Opcode.WRITE:
                self._on_write(request)
            case Opcode.FSYNC:
                file = self._file(request.node)
                self._strike(request, "sync", file, partial(self._sync, file))
            case Opcode.FSYNCDIR:
                folder = self._folder(request.node)
                self._strike(request, "sync_dir", folder, partial(self._sync_names, folder))
            case _:
                self._answer(request.unique, partial(self._do, request))

    def _answer(self, unique: int, act: Callable[[], bytes]) -> int:
        """Do a request and reply; return the error's code, 0 if there was none."""
        body, code = b"", 0
        try:
            body = act()
        except OSError as error:
            code = error.errno or errno.EIO
        self._reply(unique, body, code)
        return code

    def _reply(self, unique: int, body: bytes, code: int) -> None:
        try:
            os.write(self._fuse, protocol.encode_reply(unique, body, code))
        except FileNotFoundError:
            return  # The request was interrupted meanwhile.

    # ---------------------------------------------------------------- faults

    def _on_write(self, request: Request) -> None:
        _, offset, size, *_ = protocol.numbers(request.body, "QQI")
        data = bytes(request.body[40 : 40 + size])
        file = self._file(request.node)
        act = partial(self._write, file, data, offset)
        self._strike(request, "write", file, act)

    def _strike(
        self, request: Request, operation: str, node: Node, act: Callable[[], bytes]
    ) -> None:
        """Do an operation that a fault may hit: at once, later, or never."""
        path = self.tree.path_of(node)
        fault = next((f for f in self.faults if f.strikes(operation, path)), None)
        code = fault.code if fault else 0

        def finish(given_up: int) -> None:
            failure = given_up or code
            if failure and operation == "sync":
                assert isinstance(node, File)
                node.fail_sync()
            if failure:
                self._reply(request.unique, b"", failure)
            else:
                failure = self._answer(request.unique, act)
            self.counts.setdefault(f"{operation} {path}", [0, 0])[bool(failure)] += 1

        if fault is None or not fault.wait_s:
            finish(0)
            return
        timer = None
        if fault.wait_s != FOR_EVER_S:
            timer = self._loop.call_later(fault.wait_s, self._release, request.unique)
        self._held[request.unique] = timer, finish

    def _release(self, unique: int, code: int = 0) -> None:
        """End the wait of an operation, if it waits."""
        timer, finish = self._held.pop(unique, (None, None))
        if timer is not None:
            timer.cancel()
        if finish is not None:
            finish(code)

    # ---------------------------------------------------------------- operations

    def _do(self, request: Request) -> bytes:
        body, node, reply = request.body, request.node, b""
        match request.opcode:
            case Opcode.INIT:
                reply = protocol.init_reply()
            case Opcode.LOOKUP:
                reply = self._entry(self.tree.get(self._folder(node), protocol.name_at(body)))
            case Opcode.GETATTR:
                reply = self._attributes(self._nodes[node])
            case Opcode.SETATTR:
                reply = self._set_attributes(self._nodes[node], protocol.set_attr(body))
            case Opcode.READ:
                _, offset, size = protocol.numbers(body, "QQI")
                reply = bytes(self._file(node).data[offset : offset + size])
            case Opcode.READDIR:
                _, offset, size = protocol.numbers(body, "QQI")
                names = self._folder(node).names
                listed = [(name, n.id, _mode(n)) for name, n in names.items()]
                reply = protocol.directory(listed, offset, size)
            case Opcode.OPEN | Opcode.OPENDIR:
                reply = protocol.opened(node)
            case Opcode.STATFS:
                reply = protocol.space(self.tree.capacity_bytes, self.tree.free_bytes)
            case Opcode.FALLOCATE:
                _, offset, size, mode, _ = protocol.numbers(body, "QQQII")
                if mode:
                    raise OSError(errno.EOPNOTSUPP, "no holes, no more than the size")
                self.tree.allocate(self._file(node), offset + size)
            case Opcode.RELEASE | Opcode.RELEASEDIR | Opcode.FLUSH | Opcode.DESTROY:
                pass
            case _:
                reply = self._change_names(request)
        return reply

    def _change_names(self, request: Request) -> bytes:
        body, folder = request.body, self._nodes[request.node]
        match request.opcode:
            case Opcode.CREATE:
                _, mode, _, _ = protocol.numbers(body, "IIII")
                name = protocol.name_at(body, 16)
                file = self.tree.create(self._folder(folder.id), name, stat.S_IMODE(mode))
                return self._entry(file) + protocol.opened(file.id)
            case Opcode.MKDIR:
                mode, _ = protocol.numbers(body, "II")
                name = protocol.name_at(body, 8)
                return self._entry(
                    self.tree.mkdir(self._folder(folder.id), name, stat.S_IMODE(mode))
                )
            case Opcode.LINK:
                (linked,) = protocol.numbers(body, "Q")
                file = self._file(linked)
                self.tree.link(file, self._folder(folder.id), protocol.name_at(body, 8))
                return self._entry(file)
            case Opcode.UNLINK | Opcode.RMDIR:
                self.tree.remove(self._folder(folder.id), protocol.name_at(body))
            case Opcode.RENAME | Opcode.RENAME2:
                to, *_ = protocol.numbers(body, "Q")
                flags = 0
                if request.opcode == Opcode.RENAME2:
                    _, flags = protocol.numbers(body, "QI")
                if flags:
                    raise OSError(errno.EINVAL, "no exchange, no RENAME_NOREPLACE")
                skip = 16 if request.opcode == Opcode.RENAME2 else 8
                old, new = protocol.two_names_at(body, skip)
                self.tree.rename(self._folder(folder.id), old, self._folder(to), new)
            case _:
                raise OSError(errno.ENOSYS, "not needed so far")
        return b""

    def _write(self, file: File, data: bytes, offset: int) -> bytes:
        return protocol.written(self.tree.write(file, data, offset))

    def _sync(self, file: File) -> bytes:
        self.tree.sync(file)
        return b""

    def _sync_names(self, folder: Folder) -> bytes:
        self.tree.sync_names(folder)
        return b""

    def _set_attributes(self, node: Node, change: protocol.SetAttr) -> bytes:
        if change.valid & protocol.FATTR_MODE:
            node.mode = stat.S_IMODE(change.mode)
        if change.valid & protocol.FATTR_SIZE:
            self._file(node.id).resize(change.size)
        return self._attributes(node)

    def _attributes(self, node: Node) -> bytes:
        return protocol.attributes(node.id, _mode(node), _size(node))

    def _entry(self, node: Node) -> bytes:
        """The file of a name; the kernel knows it from now on, until it forgets it."""
        self._nodes[node.id] = node
        self._lookups[node.id] = self._lookups.get(node.id, 0) + 1
        return protocol.entry(node.id, _mode(node), _size(node))

    def _forget(self, node: int, times: int) -> None:
        self._lookups[node] = left = self._lookups.get(node, 0) - times
        if left <= 0 and node != self.tree.root.id:
            self._lookups.pop(node)
            self._nodes.pop(node, None)

    def _file(self, node: int) -> File:
        found = self._nodes[node]
        if not isinstance(found, File):
            raise OSError(errno.EISDIR, "it is a folder")
        return found

    def _folder(self, node: int) -> Folder:
        found = self._nodes[node]
        if not isinstance(found, Folder):
            raise OSError(errno.ENOTDIR, "it is a file")
        return found


def _mode(node: Node) -> int:
    return node.mode | (stat.S_IFREG if isinstance(node, File) else stat.S_IFDIR)


def _size(node: Node) -> int:
    return len(node.data) if isinstance(node, File) else 0
