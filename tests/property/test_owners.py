"""Which session a full table drops: the fast way agrees with a plain one, loaded or not."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from raftha.storage.state.owners import Owners, make_owner

OWNERS = [make_owner(node, client) for node in (1, 2) for client in ("", "a 1", "a 2", "b 1")]
STEPS = st.lists(
    st.tuples(st.sampled_from(("open", "open", "use", "drop", "greedy")), st.integers(0, 99)),
    max_size=80,
)


def plain(table: dict[int, bytes]) -> int:
    """The session to drop, by counting all owners again."""
    left = list(table.items())
    for length in (10, 16):
        counts = Counter(owner[:length] for _, owner in left)
        most = max(counts.values())
        name = next(owner[:length] for _, owner in left if counts[owner[:length]] == most)
        left = [each for each in left if each[1][:length] == name]
    return left[0][0]


@given(STEPS)
def test_the_greediest_is_found_whatever_happened_before(steps: list[tuple[str, int]]) -> None:
    table: dict[int, bytes] = {}
    owners = Owners()
    for number, (step, choice) in enumerate(steps):
        session = list(table)[choice % len(table)] if table else 0
        if step == "open":
            table[number] = OWNERS[choice % len(OWNERS)]
            owners.add(number, table[number])
        elif not table:
            continue
        elif step == "use":
            table[session] = table.pop(session)
            owners.use(session, table[session])
        else:
            session = owners.find_greediest(table.items()) if step == "greedy" else session
            owners.drop(session, table.pop(session))
        if table:
            loaded = Owners()
            for each, owner in table.items():
                loaded.add(each, owner)
            expected = plain(table)
            assert owners.find_greediest(table.items()) == expected
            assert loaded.find_greediest(table.items()) == expected
