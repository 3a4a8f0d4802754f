"""Counts what really happened in a run of many seeds: a fault that never strikes proves nothing.

Theory of operation. `World.counts` counts every event of interest in a simulation. `ROWS` says
which of the counts to print, and how to name them; `Coverage` adds up seeds; `table` prints them,
with the number of seeds in which each happened at all, and `missing` names those that never did,
which is a failure of a run that is long enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

ENOUGH_SEEDS = 1000
"""A run of at least so many seeds must have had everything.

The rarest rows happen in 1 to 2 % of the seeds: 200 fresh ones miss one of them now and then.
"""

ROWS: dict[str, tuple[tuple[str, str], ...]] = {
    "the network": (
        ("message", "messages delivered"),
        ("message lost", "messages lost"),
        ("message late", "messages delayed by up to a second"),
        ("message overtook", "messages that overtook others"),
        ("message twice", "messages delivered twice"),
        ("message as bytes", "messages that went through the wire format"),
        ("block", "partitions"),
        ("blocked one way", "of them, in one direction only somewhere"),
        ("clog", "clogs of a member's ways"),
        ("message held up", "messages that came when a clog ended"),
        ("reset", "connections reset"),
    ),
    "processes and machines": (
        ("killed", "processes killed"),
        ("power loss", "power losses: unsynced writes lost or torn"),
        ("crash in a disk operation", "of both, in the middle of a disk operation"),
        ("start crashed", "crashes during recovery"),
        ("pause", "processes paused"),
        ("clock step", "wall clocks stepped, forward or back, by up to 2 h"),
        ("clock wrong", "wall clocks set wrong by up to 200 years"),
        ("clock reported", "times that a leader reported a wrong clock"),
        ("clock drifts", "clocks made fast or slow, by up to half"),
    ),
    "disks": (
        ("disk breaks", "disks that fail a sync, once or for good"),
        ("storage failed", "nodes that ended for that"),
        ("disk hangs", "disks that hang"),
        ("disk is slow", "disks 3 to 30 times as slow"),
        ("disk is full", "disks that fill up"),
        ("no space", "writes and checkpoints that found no space"),
        ("space again", "writes and checkpoints that went on when there was space"),
        ("heard StorageFull", "calls refused for a full disk"),
        ("endured a sick disk", "times that a cluster had to go on beside one sick disk"),
        ("rot", "logs and states damaged"),
        ("put back", "directories put back to earlier copies, which lack acknowledged entries"),
        ("damage found", "damages found, upon which the node begins to heal from the others"),
        ("healed", "nodes that healed, and vote again"),
        ("state altered", "states altered, which only a comparison of digests can notice"),
        ("joined", "nodes with empty directories that joined the cluster"),
        ("wiped and healed", "nodes that lost their directories, and were healed"),
        ("wiped", "nodes that lost their directories, and came back under their old ids"),
        ("wiped without the leader", "of them, while no other node with what was committed is up"),
        ("put back without the leader", "directories put back while that is so"),
        ("majority wiped", "majorities that lost their directories"),
        ("empty node reports a cluster", "empty nodes of them that say that there is a cluster"),
        ("quorum recovered", "survivors that an operator made the whole cluster"),
        ("recovered beside a majority", "of them, though a majority lived"),
    ),
    "the cluster": (
        ("leader", "elections won"),
        ("pre_candidate", "pre-votes asked for"),
        ("failover", "changes of leader, as each node reported and measured them"),
        ("planned failover", "of them, handed over"),
        ("transfer", "transfers of leadership asked for"),
        ("transfer done", "of them, done"),
        ("promotion without a leader", "of them, where the node that was asked knew no leader"),
        ("campaign on demand", "campaigns of nodes that don't campaign unless they are asked to"),
        ("leadership returned", "returns of leadership to a better region, when all was calm"),
        ("checkpoint", "checkpoints"),
        ("compacted", "logs cut"),
        ("behind log", "members that needed what the log no longer has"),
        ("snapshot installed", "snapshots of the state installed"),
        ("change done", "changes of membership made"),
        ("change refused", "changes of membership refused or not answered in time"),
        ("standby", "changes of membership with a standby in it"),
        ("standby promoted", "standbys promoted"),
        ("region promoted", "times that all standbys of a region were to be promoted"),
        ("upgraded", "members that came back with the next build of the program"),
        ("downgraded", "members that came back with the build before"),
        ("version raised", "clusters that came to use the next version of the state machine"),
        ("too old to run", "members with the build before, which then refused to run"),
        ("knows it was removed", "nodes that learned that they were removed"),
    ),
    "backups": (
        ("full backup", "full backups completed"),
        ("incremental backup", "incremental ones"),
        ("differential backup", "differential ones"),
        ("backup restored", "backups restored, to the state that the log leads to"),
        ("recovery point", "recovery points noted"),
        ("backup failed", "backups given up"),
        ("backup adopted", "of them, adopted later, since they were complete"),
        ("backup deleted", "backups deleted"),
        ("backup missing", "backups that a bucket has lost, noticed"),
        ("bucket away", "buckets that were away for a while"),
        ("bad write", "objects that got other bytes than were written"),
        ("object rotten", "objects that have changed later"),
        ("object vanished", "objects that have vanished"),
        ("other cluster in the repository", "repositories with another cluster's backups"),
    ),
    "the archive": (
        ("segment of level 0", "segments of committed entries put"),
        ("segment of level 1", "of them, those that replace the first ones"),
        ("archive refused", "jobs of an archiver that ended with an error"),
        ("forged object", "segments of a copy of the cluster under our names"),
        ("archive conflict", "conflicts noticed"),
        ("gap recorded", "gaps recorded, as no member had the entries any more"),
        ("moment restored", "moments restored from backups and archive, to the state of then"),
        ("archive whole", "archives that were whole in the end, but for what is recorded"),
    ),
    "recoveries": (
        ("recovery wanted", "recoveries asked for"),
        ("prepare", "of them, prepared by the members"),
        ("recovery restored", "of them, carried out"),
        ("recovery aborted", "of them, given up"),
        ("state built from a bucket", "states built from what is in the buckets"),
        ("goes back", "nodes that went on with the state of then"),
        ("state that differs", "states that a member prepared otherwise than the others"),
        ("crash in a recovery", "nodes ended at a step of a recovery"),
        ("recovery answered", "callers that were told what came of it"),
    ),
    "clients": (
        ("acknowledged", "writes acknowledged"),
        ("rejected", "writes refused, with no effect"),
        ("unknown", "writes whose outcome stayed unknown"),
        ("read", "linearizable reads answered"),
        ("read on a follower", "of them, by followers"),
        ("lease read", "reads answered by a lease, straight from the caller's thread"),
        ("lease missed", "such reads for which there was no lease, or not everything was applied"),
        ("lease ran out", "such reads whose lease had ended when they looked again"),
        ("aged read", "reads answered that could be of a certain age"),
        ("aged read at once", "of them, at once"),
        ("aged read of what has changed since", "of them, where an older value was allowed"),
        ("receipt of all voters", "receipts whose callers wanted all voters to have the write"),
        ("receipt of a quorum", "receipts whose callers wanted more than a majority"),
        ("receipt too late", "receipts given when there were not so many in time"),
        ("receipt of several regions", "receipts that name several regions"),
        ("disk looked at", "disks looked at, whether what a receipt names would survive now"),
        ("retry", "groups sent again under their number"),
        ("duplicate suppressed", "duplicates in the log that had no second effect"),
        ("greedy session", "sessions opened by clients that have too many"),
        ("session crowded out", "sessions that a full table dropped"),
        ("session expired", "groups that came after their session had expired"),
        ("poison", "commands that end every node, committed"),
        ("poisoned", "nodes that ended for it"),
        ("skips", "nodes that an operator had skip it"),
        ("refused for what it skips", "nodes refused, since they skip other entries"),
        ("command failed", "commands that raised, and were rolled back"),
    ),
}


class Coverage:
    """The counts of many seeds."""

    def __init__(self) -> None:
        self.seeds = 0
        self._total: Counter[str] = Counter()
        self._seeds_with: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int]) -> None:
        """Take in a seed."""
        self.seeds += 1
        self._total.update(counts)
        self._seeds_with.update(name for name, count in counts.items() if count)

    def missing(self, enough: int = ENOUGH_SEEDS) -> list[str]:
        """What never happened in a run of at least `enough` seeds."""
        if self.seeds < enough:
            return []
        rows = [row for section in ROWS.values() for row in section]
        return [label for name, label in rows if not self._total[name]]

    def table(self) -> str:
        """All rows, one a line."""
        lines = [f"{'times':>12}  {'seeds':>6}"]
        for section, rows in ROWS.items():
            lines.append(section)
            for name, label in rows:
                lines.append(f"{self._total[name]:12,}  {self._seeds_with[name]:6,}  {label}")
        return "\n".join(lines)
