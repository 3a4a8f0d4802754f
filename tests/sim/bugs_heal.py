"""Bugs to plant in how members heal from damage. See `bugs.py`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from raftha.core import Healed, Message
from raftha.core.election import Election
from raftha.core.healing_generation import Epochs
from raftha.core.leader import Leadership
from raftha.core.progress import Progress
from raftha.entry import EntryKind
from raftha.errors import Corrupt
from raftha.storage.directory.healing import LOG
from raftha.storage.log import recovery
from tests.sim.planting import Bug, Patch
from tests.sim.vault import SimulatedVault


def healing_node_votes() -> list[Patch]:
    """A member that has lost its log votes, and campaigns, as if it hadn't."""
    vote, original = Election.on_vote_request, Election.is_voter.fget  # type: ignore[attr-defined]
    assert original is not None

    def unhurt(function: Any) -> Any:
        def call(self: Election, *args: Any) -> Any:
            own, self._epochs.own = self._epochs.own, 0
            try:
                return function(self, *args)
            finally:
                self._epochs.own = own

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


def epochs_ignored() -> list[Patch]:
    """A reply that a member gave before it lost its log is believed after the news of the loss."""

    def hear_epoch(self: Leadership, peer: int, epoch: int) -> None:
        progress = self.progress[peer]
        progress.epoch = epoch
        if progress.is_healing and progress.heals_at is None:
            progress.heals_at = self.append(EntryKind.NOOP, b"", 0, 0)

    def is_outdated(self: Epochs, message: Message) -> bool:
        return False

    return [(Leadership, "_hear_epoch", hear_epoch), (Epochs, "is_outdated", is_outdated)]


def healed_without_confirmation() -> list[Patch]:
    """A leader calls a member healed that holds what the leader had when it was elected."""

    def tell_if_healed(self: Leadership, peer: int, progress: Progress) -> None:
        if progress.is_healing and progress.match:
            self._send(Healed(peer, self.id, self.term, progress.epoch))

    return [(Leadership, "_tell_if_healed", tell_if_healed)]


def damage_is_cut_off() -> list[Patch]:
    """A log is cut where it is damaged, as if that were a torn tail."""
    return [(recovery, "_check_tail", lambda disk, segment: None)]


def loss_not_noted() -> list[Patch]:
    """A member that lost its log begins another one, and takes part as if nothing had happened."""

    def note_loss(self: SimulatedVault, parts: Collection[str], found: Corrupt) -> None:
        self._losses += 1
        self.lost = {part: f"{part}-{self._losses}" for part in sorted(parts)}
        self._keeper.on_damage(parts, found)

    return [(SimulatedVault, "note_loss", note_loss)]


def state_replaced_alone() -> list[Patch]:
    """A state that was lost is begun anew, though the log doesn't go back to its beginning."""
    original = SimulatedVault.note_loss

    def note_loss(self: SimulatedVault, parts: Collection[str], found: Corrupt) -> None:
        original(self, parts, found)
        if len(parts) > 1:
            self.lost.pop(LOG)

    return [(SimulatedVault, "note_loss", note_loss)]


BUGS: tuple[Bug, ...] = (
    healing_node_votes,
    healing_node_counts,
    epochs_ignored,
    healed_without_confirmation,
    damage_is_cut_off,
    loss_not_noted,
    state_replaced_alone,
)
