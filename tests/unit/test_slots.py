"""Slots of undecided connections: strangers can't keep members out."""

from __future__ import annotations

from raftha.net.slots import MEMBER_MAX, STRANGERS_MAX, Slots


def filled(host: str, count: int) -> Slots[str]:
    slots: Slots[str] = Slots()
    for number in range(count):
        assert slots.enter(f"{host}-{number}", host) is None
    return slots


def test_a_new_stranger_pushes_out_the_oldest_of_the_busiest_address() -> None:
    slots = filled("10.0.0.9", STRANGERS_MAX - 1)
    assert slots.enter("quiet", "10.0.0.8") is None
    assert slots.enter("another", "10.0.0.7") == "10.0.0.9-0"
    assert slots.enter("again", "10.0.0.9") == "10.0.0.9-1"
    assert len(slots) == STRANGERS_MAX


def test_a_freed_slot_is_used_before_anything_is_pushed_out() -> None:
    slots = filled("10.0.0.9", STRANGERS_MAX)
    slots.leave("10.0.0.9-5")
    slots.leave("10.0.0.9-5")
    assert slots.enter("new", "10.0.0.9") is None
    assert slots.enter("newer", "10.0.0.9") == "10.0.0.9-0"


def test_members_addresses_have_slots_that_strangers_can_not_take() -> None:
    slots = filled("10.0.0.9", STRANGERS_MAX)
    slots.set_members(["10.0.0.1", "10.0.0.2"])
    for number in range(MEMBER_MAX):
        assert slots.enter(f"one-{number}", "10.0.0.1") is None
        assert slots.enter(f"two-{number}", "10.0.0.2") is None
    for number in range(1000):
        pushed_out = slots.enter(f"flood-{number}", "10.0.0.9")
        assert pushed_out is not None and pushed_out.startswith(("10.0.0.9", "flood"))
    assert slots.enter("one-more", "10.0.0.1") == "one-0"
    assert len(slots) == STRANGERS_MAX + 2 * MEMBER_MAX


def test_a_new_connection_is_never_the_one_that_is_pushed_out() -> None:
    slots: Slots[int] = Slots()
    for number in range(3 * STRANGERS_MAX):
        assert slots.enter(number, f"10.0.{number}.1") != number
    assert len(slots) == STRANGERS_MAX
    slots.clear()
    assert len(slots) == 0
