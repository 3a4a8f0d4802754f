"""The Raft log on disk: it survives any crash, or reports that it is damaged.

Theory of operation. One thread appends. Each append is one *write*: a run of records, written
behind the last one with one `pwrite` and made durable with one `fdatasync`. When `append` returns,
its entries and its hard state (term, vote) are on the disk. Only then may anything that depends on
them leave the process. Other threads read, free old segments and prepare new ones.

The log is a chain of files of fixed size, *segments*, in one folder:

    0000000000000001.seg   live, oldest      spare-4.seg   ready for use, content meaningless
    0000000000000002.seg   live              spare-5.tmp   a spare in the making
    0000000000000003.seg   live, current: the only one that the log writes to

A segment is filled with zeros once, synced, and from then on only overwritten and recycled. So an
fdatasync never waits for the file system to allocate blocks (0.3 ms against 1.8 ms on ext4).
`segment.py` has the layout byte by byte; in short:

    header (4096)  | write | write | write | remains of an earlier use
    id, salt, ...  | write record, [hard state record], entry records | ...

Supersession. An entry at index i supersedes all entries at or after i, as a new leader's log
replaces a follower's tail. Nothing is erased; the later record counts. To keep each segment
readable without those before it, an entry never goes into a segment whose `base` (the log position
before its first entry) is at or after it: the append rolls to a new segment instead. So for any
segment j, the log is the entries up to base(j) followed by what segments from j on hold. `compact`
frees the segments before j once everything up to base(j) is committed and in a checkpoint.

A log can begin again at a position that it has never reached (`reset`), after a snapshot of the
state was received. A mark in the new segment's header says that earlier segments are no longer part
of the log.

The rules, W1 to W6:

  W1  A write is made only after the one before it is durable. So at most one write, the
      last, is ever in doubt, and a valid write record at offset x proves that all before x was
      durable.
  W2  A segment becomes live in the order: pwrite of header and first write into a spare, fdatasync,
      rename to its id, sync of the folder. So a live segment's header and first write are whole.
  W3  A segment states where the log ended in the one before it (end and salt), and all of that was
      durable before. So only the last segment can have a torn tail.
  W4  A freed segment is renamed to a spare, and the folder synced, before the next step: the next
      segment's rename, or the spare's use. Oldest first, so a gap between ids is damage.
  W5  Checksums are seeded with the segment's salt and id and with the record's offset. Records of
      the file's earlier use, or from another place, are never valid.
  W6  A failed write or sync is final: the log refuses all further work. The content of the disk is
      unknown, and a second fdatasync that succeeds proves nothing.

Recovery walks all writes (`recovery.py`). A write that isn't whole is ignored: it was never
acknowledged, since its fdatasync never returned. Recovery then decides:

    what is found                                       verdict
    invalid record before the end that W3 states        Corrupt: was durable
    invalid header, or first write, of a live segment   Corrupt: was durable (W2)
    invalid record, a valid write record after it       Corrupt: was durable (W1)
    invalid record, no write record after it            torn tail, or end of log: cut here

Cutting writes zeros from the end of the last whole write as far as a torn one can reach, and syncs.
Otherwise parts of the torn write and parts of the next one, if that is torn too, could form a write
that was never made. The last whole write is written once more in the same step (see `cut_tail`).
Damage to the very last write looks like a torn tail, and nothing on this disk can tell the two
apart. So `close` adds an empty write: everything before it is known to have been durable.

Crash cases, and why each is safe:

- In an append: W1. Recovery cuts the write, or finds it whole and makes it durable.
- While a segment becomes live: before the rename survives, it is a spare, and the previous segment
  is the last one. After, it is whole (W2), and nothing in it was acknowledged unless the rename is
  durable; recovery syncs the folder before it relies on it.
- While spares are made: unfinished ones have another name and are removed.
- In a compaction: each step leaves a chain without gaps. A segment whose renaming was lost is live
  again and holds what it held, as it isn't reused before the renaming is durable (W4).
- In a reset: until the new segment's rename is durable, nothing has happened. From then on the log
  begins with it, and `open` frees the segments before it, as `reset` would have.
- While the tail is cut: zeros over an invalid write leave it invalid; recovery does it again.
- In recovery anywhere else: recovery changes nothing.

Threads: one thread calls `append` and `close`, any thread `read`, and one background thread
`compact` and `prepare_spare`. The lock guards lists and positions, and is never held during a read,
a write or a sync.
"""

from __future__ import annotations

import contextlib
import os
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from raftha.entry import Entry, HardState, LogPosition
from raftha.errors import Compacted, Corrupt, StorageFailed, StorageFull
from raftha.storage.files import describe, owner_hint
from raftha.storage.log.disk import Disk
from raftha.storage.log.recovery import (
    LOCATION_SHIFT,
    Log,
    close_all,
    cut_tail,
    live_ids,
    recover,
    segment_path,
)
from raftha.storage.log.segment import (
    HEADER_BYTES,
    PAGE_BYTES,
    RECORD_HEADER_BYTES,
    WRITE_BYTES_MAX,
    WRITE_RECORD_BYTES,
    Header,
    Segment,
    Write,
    body_bytes,
    encode_header,
    encode_write,
    read_entry,
    record_bytes,
    write_bytes,
)
from raftha.storage.log.spares import OnPart, Spares, at_once

_OFFSET_MASK = (1 << LOCATION_SHIFT) - 1


class Wal:
    """The log. `open` makes one; the attributes show what is durable, and change only in `append`.

    `hard_state`: the last one appended. `base`: the position before the first entry held. `last`:
    the position of the last entry, or `base`. `directory`: its folder.
    """

    def __init__(
        self, disk: Disk, directory: str, segment_bytes: int, salt: Callable[[], int], log: Log
    ) -> None:
        self.hard_state = log.hard_state
        self.base = log.base
        self.last = log.last
        self.directory = directory
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._write_bytes_max = min(WRITE_BYTES_MAX, segment_bytes - HEADER_BYTES)
        self._new_salt = salt
        self._segments = log.segments
        self._locations = log.locations
        self._spares = Spares(disk, directory, segment_bytes)
        self._failure = ""
        write = log.last_write
        self._is_sealed = write is not None and not write.entries and write.hard_state is None
        self._lock = threading.Condition(threading.Lock())

    @classmethod
    def open(
        cls, disk: Disk, directory: str, *, segment_bytes: int, salt: Callable[[], int]
    ) -> Wal:
        """Recover the log in `directory`, or begin one if the folder is empty or missing.

        `salt` returns random numbers below 2**64. Raises Corrupt, having changed nothing, if bytes
        that were durable are damaged; StorageFull or StorageFailed if the disk refuses.
        """
        assert segment_bytes % PAGE_BYTES == 0, "a segment is whole pages"
        assert 4 * PAGE_BYTES <= segment_bytes <= 1 << 30, "offsets in a segment have 30 bits"
        directory = os.fspath(directory)
        try:
            disk.mkdir(directory)
            disk.sync_dir(os.path.dirname(directory) or ".")
            disk.sync_dir(directory)  # A crashed process may have left names in memory only.
            names = disk.listdir(directory)
            log = recover(disk, directory, live_ids(directory, names))
            wal = cls(disk, directory, segment_bytes, salt, log)
            try:
                wal._start(names, log.last_write)
            except BaseException:
                close_all(disk, log.segments)
                disk.close_dirs()
                raise
        except OSError as error:
            failure = f"opening the log failed: {describe(error, directory)}"
            raise StorageFailed(failure, hint=owner_hint(error)) from error
        return wal

    @property
    def first_index(self) -> int:
        """The index of the first entry held, or of the next one if none is."""
        return self.base.index + 1

    @property
    def last_index(self) -> int:
        """The index of the last entry, or of `base` if none is held."""
        return self.last.index

    @property
    def entry_bytes_max(self) -> int:
        """The largest `Entry.data` that fits, alone or with a hard state."""
        return self._write_bytes_max - write_bytes(HardState(0, 0, 0), ()) - RECORD_HEADER_BYTES

    @property
    def size_bytes(self) -> int:
        """How many bytes of log the live segments hold."""
        with self._lock:
            return sum(segment.end - HEADER_BYTES for segment in self._segments)

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Make a hard state and entries durable; on return they are.

        The first entry may supersede: every entry at or after it is dropped. The hard state is
        never less durable than any of the entries. StorageFull leaves the log usable: `last` shows
        which of the entries are in it (the first ones, if any); the caller may append all again.
        """
        self._check()
        if entries:
            first, last = entries[0].index, entries[-1].index
            assert first > self.base.index, "what was compacted isn't replaced"
            assert first <= self.last.index + 1, "entries are added without a gap"
            assert last == first + len(entries) - 1, "entries follow each other"
            is_behind = first > self.last.index
            assert not is_behind or entries[0].term >= self.last.term, "terms never decrease"
        elif hard_state is None:
            return
        if hard_state is not None:
            assert hard_state.term >= self.hard_state.term, "the term on disk never goes back"
        if write_bytes(hard_state, entries) <= self._write_bytes_max:
            self._write(hard_state, entries)
        else:
            for part_hard_state, part in self._parts(hard_state, entries):
                self._write(part_hard_state, part)
        assert not entries or self.last.index == last, "the log ends with the last entry"

    def seal(self, commit: int = 0) -> None:
        """Append a write without entries, durably: damage to the write before it is then detected.

        `commit`: up to there, entries on this disk are committed. StorageFull loses nothing.
        """
        self._check()
        is_news = commit > self.hard_state.commit
        self._write(self.hard_state._replace(commit=commit) if is_news else None, ())
        self._is_sealed = True  # The commit index is a hint: losing it loses nothing.

    def read(self, lo: int, bytes_max: int) -> list[Entry]:
        """Return entries from index `lo` on, about `bytes_max` bytes; at least one if there is one.

        A read ends at the end of a segment. Any thread. Compacted if `lo` is before the first
        entry; Corrupt if a record on the disk is damaged.
        """
        with self._lock:
            self._check()
            if lo <= self.base.index:
                raise Compacted(lo, self.first_index)
            if lo > self.last.index:
                return []
            segment, locations, end = self._span(lo, bytes_max)
            segment.readers += 1
        try:
            return self._read_span(segment, lo, locations, end)
        except OSError as error:
            raise self._fail(error) from error
        finally:
            with self._lock:
                segment.readers -= 1
                self._lock.notify_all()

    def compact(self, index: int) -> None:
        """Free the segments that hold nothing after `index`; `base` moves on.

        Everything up to `index` must be committed, so that it is never superseded, and durable in
        a checkpoint.
        """
        with self._lock:
            self._check()
            assert index <= self.last.index, "only what the log holds is given up"
            keep = 0  # The last segment that, with those after it, has all after `index`.
            for i, segment in enumerate(self._segments):
                if segment.header.base.index <= index:
                    keep = i
            if keep == 0:
                return
            freed, self._segments = self._segments[:keep], self._segments[keep:]
            base = self._segments[0].header.base
            assert base.index >= self.base.index, "the base never moves back"
            assert base.index <= index, "what may still be needed is kept"
            del self._locations[: base.index - self.base.index]
            self.base = base
            while any(segment.readers for segment in freed):
                self._lock.wait()
        self._free(freed)

    def index_within(self, bytes_max: int) -> int:
        """Return the index to compact to if at most `bytes_max` may stay beside the last segment.

        The caller must limit it to what the log may give up.
        """
        with self._lock:
            segments = list(self._segments)
        total, index = 0, segments[-1].header.base.index
        for segment in reversed(segments):
            total += segment.end - HEADER_BYTES
            if total > bytes_max:
                break
            index = segment.header.base.index
        return index

    def reset(self, position: LogPosition) -> None:
        """Begin the log again behind `position`, without entries; term and vote stay. Durable.

        Used when a snapshot of the state as of `position` replaces the log up to there, and no
        other thread uses the log. After a crash, the reset has happened completely or not at all.
        """
        self._check()
        term, vote, commit = self.hard_state
        if position.term > term:
            term, vote = position.term, 0
        hard_state = HardState(term, vote, max(commit, position.index))
        self._roll(hard_state, (), reset_to=position)
        assert self.base == self.last == position, "the log begins at the position"
        assert not self._locations, "the log begins without an entry"
        with self._lock:
            freed, self._segments = self._segments[:-1], self._segments[-1:]
        self._free(freed)

    def _free(self, freed: list[Segment]) -> None:
        """Turn segments that are no longer part of the log into spares, oldest first (W4)."""
        try:
            for segment in freed:
                self._disk.close(segment.handle)
                self._spares.put(segment.path, segment.header.segment_bytes)
        except OSError as error:
            raise self._fail(error) from error

    @property
    def has_spare(self) -> bool:
        """Whether the next segment is ready."""
        return self._spares.is_ready

    @property
    def segment_bytes(self) -> int:
        """The size of a new segment."""
        return self._segment_bytes

    @property
    def used(self) -> float:
        """The share of the current segment that is full. Any thread."""
        segment = self._segments[-1]
        return segment.end / segment.header.segment_bytes

    def prepare_spare(self, on_part: OnPart = at_once) -> None:
        """Make a spare segment if there is none, ahead of the `append` that will need it.

        Writes a segment of zeros, and waits between its parts as `on_part` decides. StorageFull if
        there is no space.
        """
        self._check()
        try:
            self._spares.prepare(on_part)
        except OSError as error:
            raise self._fail(error) from error

    def close(self) -> None:
        """Seal the log, so that recovery can detect damage to its last write; close its files.

        After a failure nothing is written. Later calls raise StorageFailed, except `close`. On a
        full disk the seal is left out, which loses nothing.
        """
        if not self._segments:
            return
        try:
            if not self._is_sealed and not self._failure:
                with contextlib.suppress(StorageFull):
                    self._write(None, ())
        finally:
            with self._lock:
                self._failure = self._failure or "the log is closed"
                while any(segment.readers for segment in self._segments):
                    self._lock.wait()
                segments, self._segments = self._segments, []
            close_all(self._disk, segments)
            self._disk.close_dirs()

    def _start(self, names: list[str], last_write: Write | None) -> None:
        """Clean up after a crash, then begin a new log or make the end of this one durable."""
        self._spares.adopt(names)
        if last_write is not None:
            cut_tail(self._disk, self._segments[-1], last_write)
            self._finish_reset()
        else:
            self._roll(None, ())

    def _finish_reset(self) -> None:
        """Free the segments before the one with which a reset began the log, if there is one."""
        resets = [i for i, segment in enumerate(self._segments) if segment.header.is_reset]
        if resets and resets[-1]:
            freed, self._segments = self._segments[: resets[-1]], self._segments[resets[-1] :]
            self._free(freed)

    def _check(self) -> None:
        if self._failure:
            raise StorageFailed(self._failure)

    def _fail(self, error: OSError) -> StorageFailed:
        """Refuse all further work (W6), and return the error."""
        self._failure = self._failure or f"the log's disk failed: {error}"
        return StorageFailed(self._failure)

    # Appending.

    def _parts(
        self, hard_state: HardState | None, entries: Sequence[Entry]
    ) -> Iterator[tuple[HardState | None, Sequence[Entry]]]:
        """Split an append that is over the limit into writes within it."""
        start, total = 0, write_bytes(hard_state, ())
        for i, entry in enumerate(entries):
            size = record_bytes(len(entry.data))
            assert len(entry.data) <= self.entry_bytes_max, "an entry must fit into a segment"
            if total + size > self._write_bytes_max:
                yield hard_state, entries[start:i]
                hard_state, start, total = None, i, WRITE_RECORD_BYTES
            total += size
        yield hard_state, entries[start:]

    def _write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        segment = self._segments[-1]
        offset = segment.end
        end = offset + write_bytes(hard_state, entries)
        is_before_base = bool(entries) and entries[0].index <= segment.header.base.index
        if end > segment.header.segment_bytes or is_before_base:
            self._roll(hard_state, entries)
            return
        data, offsets = encode_write(segment.header, segment.seed, offset, hard_state, entries)
        try:
            self._disk.pwrite(segment.handle, data, offset)
            self._disk.fdatasync(segment.handle)
        except OSError as error:
            raise self._fail(error) from error
        with self._lock:
            assert segment.end == offset, "one write at a time (W1)"
            segment.end = end
            self._written(segment, hard_state, entries, offsets)

    def _written(
        self,
        segment: Segment,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        offsets: list[int],
    ) -> None:
        """Record a durable write. The lock is held."""
        self._is_sealed = not entries and hard_state is None
        if hard_state is not None:
            self.hard_state = hard_state
        if entries:
            high = segment.header.segment_id << LOCATION_SHIFT
            del self._locations[entries[0].index - self.base.index - 1 :]
            self._locations.extend([high | offset for offset in offsets])
            self.last = entries[-1].position
        held = self.last.index - self.base.index
        assert len(self._locations) == held, "each entry that the log holds has a place"

    def _roll(
        self,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        reset_to: LogPosition | None = None,
    ) -> None:
        """Write into a spare and make it the current segment, in the order of W2.

        With `reset_to`, the log begins with the new segment, at this position.
        """
        previous = self._segments[-1] if self._segments else None
        header = Header(
            segment_id=previous.header.segment_id + 1 if previous else 1,
            salt=self._new_salt(),
            segment_bytes=self._segment_bytes,
            first_write_end=HEADER_BYTES + write_bytes(hard_state, entries),
            previous_salt=previous.header.salt if previous else 0,
            previous_end=previous.end if previous else 0,
            base=reset_to or (self._position(entries[0].index - 1) if entries else self.last),
            hard_state=self.hard_state,
            is_reset=reset_to is not None,
        )
        assert 0 < header.salt < 1 << 64, "a salt has 64 bits, not all zero"
        assert header.salt != header.previous_salt, "each segment has a salt of its own (W5)"
        path = segment_path(self.directory, header.segment_id)
        data, offsets = encode_write(header, header.seed, HEADER_BYTES, hard_state, entries)
        try:
            spare, handle = self._spares.take(encode_header(header) + data)
        except OSError as error:
            raise self._fail(error) from error
        segment = Segment(path, handle, header, header.seed, header.first_write_end)
        try:
            self._disk.rename(spare, path)
            self._disk.sync_dir(self.directory)
        except OSError as error:
            close_all(self._disk, [segment])
            raise self._fail(error) from error
        with self._lock:
            self._segments.append(segment)
            if reset_to is not None:
                self.base = self.last = reset_to
                self._locations = array("Q")
            self._written(segment, hard_state, entries, offsets)

    def _position(self, index: int) -> LogPosition:
        """Return the position after entry `index`, which the log holds or which is its base."""
        if index == self.last.index:
            return self.last
        if index == self.base.index:
            return self.base
        return self.read(index, 1)[0].position

    # Reading.

    def _span(self, lo: int, bytes_max: int) -> tuple[Segment, array[int], int]:
        """Find what to read: a segment, offsets of entries from `lo` on, and the end."""
        locations = self._locations
        i = lo - self.base.index - 1
        location = locations[i]
        segment_id = location >> LOCATION_SHIFT
        segment = self._segments[segment_id - self._segments[0].header.segment_id]
        end = min((location & _OFFSET_MASK) + max(bytes_max, 0), segment.end)
        stop = bisect_left(locations, segment_id << LOCATION_SHIFT | end, i + 1)
        return segment, locations[i:stop], end

    def _read_span(self, segment: Segment, lo: int, locations: array[int], end: int) -> list[Entry]:
        start = locations[0] & _OFFSET_MASK
        count = max(end - start, RECORD_HEADER_BYTES)
        window = self._disk.pread(segment.handle, count, start)
        entries: list[Entry] = []
        for index, location in enumerate(locations, lo):
            entry = read_entry(segment, window, start, location & _OFFSET_MASK)
            if entry is None and not entries:  # The first one is larger than `bytes_max`.
                count = record_bytes(body_bytes(window))
                window = self._disk.pread(segment.handle, count, start)
                entry = read_entry(segment, window, start, start)
                if entry is None:
                    raise Corrupt(segment.path, start + len(window), "the file ends here")
            if entry is None:
                break
            if entry.index != index:
                raise Corrupt(
                    segment.path,
                    location & _OFFSET_MASK,
                    f"the record is entry {entry.index}, not {index}",
                )
            entries.append(entry)
        return entries
