"""Bugs to plant in how members heal from damage. See `bugs.py`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from raftha.core import Append, Healed, Message, VoteRequest
from raftha.core.election import Election
from raftha.core.follower import Follower
from raftha.core.healing_generation import HealingGeneration
from raftha.core.leader import Leadership
from raftha.core.progress import Progress
from raftha.entry import Entry, EntryKind
from raftha.errors import Corrupt
from raftha.node.checkpoints import Checkpoints
from raftha.node.watch.divergence import DivergenceWatch
from raftha.storage.directory.healing import LOG
from raftha.storage.log import recovery
from raftha.storage.state.state import Frozen, StateDigest
from tests.sim.node_files import SimulatedNodeFiles
from tests.sim.planting import Bug, Patch


def healing_node_votes() -> list[Patch]:
    """A member that has lost its log votes, and campaigns, as if it hadn't."""
    vote, original = Election.on_vote_request, Election.is_voter.fget  # type: ignore[attr-defined]
    assert original is not None

    def unhurt(function: Any) -> Any:
        def call(self: Election, *args: Any) -> Any:
            current, self._healing_generation.current = self._healing_generation.current, 0
            try:
                return function(self, *args)
            finally:
                self._healing_generation.current = current

        return call

    return [
        (Election, "on_vote_request", unhurt(vote)),
        (Election, "is_voter", property(unhurt(original))),
    ]


def healing_node_counts() -> list[Patch]:
    """A leader counts what a healing member acknowledges, and its replies, for its quorums."""
    return [
        (Progress, "is_healing", property(lambda self: False)),
        (Progress, "counted", property(lambda self: self.match)),
    ]


def generations_ignored() -> list[Patch]:
    """A reply that a member gave before it lost its log is believed after the news of the loss."""

    def record_generation(self: Leadership, peer: int, generation: int) -> None:
        progress = self.progress[peer]
        progress.healing_generation = generation
        if progress.is_healing and progress.heals_at is None:
            progress.heals_at = self.append(EntryKind.NOOP, b"", 0, 0)

    def is_outdated(self: HealingGeneration, message: Message) -> bool:
        return False

    return [
        (Leadership, "_record_generation", record_generation),
        (HealingGeneration, "is_outdated", is_outdated),
    ]


def healed_without_confirmation() -> list[Patch]:
    """A leader calls a member healed that holds what the leader had when it was elected."""

    def confirm_healing(self: Leadership, peer: int, progress: Progress) -> None:
        if progress.is_healing and progress.match and self._is_disk_recorded(peer):
            self._send(Healed(peer, self.id, self.term, progress.healing_generation))

    return [(Leadership, "_confirm_healing", confirm_healing)]


def damage_is_cut_off() -> list[Patch]:
    """A log is cut where it is damaged, as if that were a torn tail."""
    return [(recovery, "_check_tail", lambda disk, segment: None)]


def loss_not_recorded() -> list[Patch]:
    """A member that lost its log begins another one, and takes part as if nothing had happened."""

    def record_loss(self: SimulatedNodeFiles, parts: Collection[str], found: Corrupt) -> None:
        self._losses += 1
        self.lost = {part: f"{part}-{self._losses}" for part in sorted(parts)}
        self._keeper.on_damage(parts, found)

    return [(SimulatedNodeFiles, "record_loss", record_loss)]


def state_replaced_alone() -> list[Patch]:
    """A lost state starts empty, though the log doesn't go back to its beginning."""
    original = SimulatedNodeFiles.record_loss

    def record_loss(self: SimulatedNodeFiles, parts: Collection[str], found: Corrupt) -> None:
        original(self, parts, found)
        if len(parts) > 1:
            self.lost.pop(LOG)

    return [(SimulatedNodeFiles, "record_loss", record_loss)]


def lost_tail_unnoticed() -> list[Patch]:
    """A member believes its log, though its leader knows that it had more."""
    return [(Follower, "_has_lost", lambda self, commit: False)]


def known_commit_ignored() -> list[Patch]:
    """A node votes for, or leads with, a log that ends before what it knows is committed."""
    on_vote_request = Election.on_vote_request

    def ask_anyone(self: Election, message: VoteRequest) -> None:
        known, self._log.known_commit = self._log.known_commit, 0
        on_vote_request(self, message)
        self._log.known_commit = known

    def may_campaign(self: Election) -> bool:
        return self.is_voter and self.is_durable and not self.promise.forbids(self.id)

    return [(Election, "on_vote_request", ask_anyone), (Election, "_may_campaign", may_campaign)]


def loss_seen_everywhere() -> list[Patch]:
    """A member takes an append that is ahead of its log for proof that it has lost entries."""
    original = Follower.on_append

    def on_append(self: Follower, message: Append) -> None:
        if message.prev_index > self._log.last_index:
            self._lost_index = message.prev_index
        original(self, message)

    return [(Follower, "on_append", on_append)]


def divergence_unnoticed() -> list[Patch]:
    """The digests of all states are alike."""
    return [(Frozen, "digest_with", lambda self, stored: StateDigest("", 0, b"1"))]


def messages_compared() -> list[Patch]:
    """Digests cover the messages of exceptions, which each replica may word differently."""
    original = Frozen._pack
    return [(Frozen, "_pack", lambda self, *, is_comparable: original(self, is_comparable=False))]


def digests_of_different_entries() -> list[Patch]:
    """A member that could take no digest at the agreed entry compares one of a later entry."""
    digest_if_due = Checkpoints._digest_if_due

    def due_later(self: Checkpoints, now: float) -> None:
        if 0 < self._compared_index < self._state.applied.index:
            self._compared_index = self._state.applied.index
        digest_if_due(self, now)
        if self._is_digesting:
            self._compared_index = 0

    def on_applied(self: Checkpoints, entry: Entry, now: float) -> None:
        self.applied_bytes += len(entry.data)
        if self._waiting or self._compared_index:
            self._digest_if_due(now)

    def on_digest(self: DivergenceWatch, index: int, digest: StateDigest | None) -> None:
        if self._wanted is not None and digest is not None:
            self._own = self._wanted.index, digest.whole
            self._answer(self._wanted, digest)

    return [
        (Checkpoints, "_digest_if_due", due_later),
        (Checkpoints, "on_applied", on_applied),
        (Checkpoints, "is_coming", lambda self, index: True),
        (DivergenceWatch, "on_digest", on_digest),
    ]


def minority_decides() -> list[Patch]:
    """The state that most members have replaces the others' without a majority."""
    return [(DivergenceWatch, "_is_majority", lambda self, voters: voters > 0)]


BUGS: tuple[Bug, ...] = (
    healing_node_votes,
    healing_node_counts,
    generations_ignored,
    healed_without_confirmation,
    damage_is_cut_off,
    loss_not_recorded,
    state_replaced_alone,
    lost_tail_unnoticed,
    known_commit_ignored,
    loss_seen_everywhere,
    divergence_unnoticed,
    messages_compared,
    digests_of_different_entries,
    minority_decides,
)
