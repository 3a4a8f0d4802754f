"""A cluster as its nodes see it, queried through their client ports.

Theory of operation. All named nodes are queried at once, then the members that their replies list,
until every known member was queried. One node that answers is enough to find the others, and a node
that hangs delays only its own row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raftha.client.call import NO_ACCESS, Access, call
from raftha.errors import RafthaError

STATUS_TIMEOUT_S = 3.0
WATCH_TIMEOUT_S = 1.0
MEMBERS_ASKED_MAX = 64
Nodes = Sequence[Mapping[str, Any]]


def poll_statuses(asked: Sequence[str], access: Access, interval_s: float) -> Iterator[Nodes]:
    """Yield the nodes' current statuses, again every `interval_s` seconds."""
    known = list(asked)
    while True:
        nodes = collect_statuses(known, access, WATCH_TIMEOUT_S)
        yield nodes
        # The named node may be the next to fail, so the members that it lists are queried too.
        removed = find_removed(nodes)
        found = [n["address"] for n in nodes if n["status"] and n["node_id"] not in removed]
        known = list(dict.fromkeys([*asked, *(found or known)]))
        time.sleep(interval_s)  # The user chose how often.


def collect_statuses(
    addresses: Sequence[str], access: Access | None = None, timeout_s: float = STATUS_TIMEOUT_S
) -> list[dict[str, Any]]:
    """Query `addresses` and every member that they list; `access` is for all of them.

    Each item has address, node_id, status (the node's `HaStatus` as a dict, None if it didn't
    answer) and error (why it didn't, else ""). A member without a client port has the address "".
    """
    nodes: list[dict[str, Any]] = []
    to_ask, asked = dict.fromkeys(addresses), set[str]()
    members: dict[int, str] = {}
    with ThreadPoolExecutor(MEMBERS_ASKED_MAX) as pool:
        while to_ask:
            answers = list(pool.map(lambda address: _ask(address, access, timeout_s), to_ask))
            asked.update(to_ask)
            nodes += answers
            reached = [node["status"] for node in answers if node["status"] is not None]
            for replica in [replica for state in reached for replica in state["replicas"]]:
                known = members.get(replica["node_id"], "")
                members[replica["node_id"]] = replica["client_address"] or known
            to_ask = dict.fromkeys(a for a in members.values() if a and a not in asked)
    by_address = {address: node_id for node_id, address in members.items()}
    for node in nodes:
        node["node_id"] = node["node_id"] or by_address.get(node["address"])
    listed = {node["node_id"] for node in nodes}
    removed = find_removed(nodes)
    nodes += [
        {"node_id": i, "address": "", "status": None, "error": "its client address is not known"}
        for i in members
        if i not in listed and i not in removed
    ]
    # A member that lags may still list a node that was removed and is gone.
    nodes = [node for node in nodes if node["status"] or node["node_id"] not in removed]
    # A node that was queried under two names is shown once.
    unique = {node["node_id"] or node["address"]: node for node in nodes}
    return sorted(unique.values(), key=lambda n: (n["node_id"] is None, n["node_id"], n["address"]))


def _ask(address: str, access: Access | None, timeout_s: float) -> dict[str, Any]:
    try:
        reply = json.loads(call(address, ("RAFTHA", "STATUS"), timeout_s, access or NO_ACCESS))
        return {"node_id": reply["node_id"], "address": address, "status": reply, "error": ""}
    except (RafthaError, ValueError, TypeError, KeyError) as error:
        reason = str(error) if isinstance(error, RafthaError) else "it is not a raftha node"
        return {"node_id": None, "address": address, "status": None, "error": reason}


def find_leader(nodes: Nodes) -> int | None:
    """The node that claims to lead in the highest term; a deposed one may not know it yet."""
    reached = [node["status"] for node in nodes if node["status"] is not None]
    leading = [s for s in reached if s["is_primary"]]
    if not leading:
        return None
    leader = max(leading, key=lambda s: s["term"])
    return int(leader["node_id"]) if leader["is_running"] else None


def find_removed(nodes: Nodes) -> list[int]:
    """The former members that any reached node knows of."""
    reached = [node["status"] for node in nodes if node["status"] is not None]
    return sorted({node_id for status in reached for node_id in status["removed"]})


def find_learners(nodes: Nodes) -> dict[int, str]:
    """The members that don't vote, and their kinds, by the node with the latest commit."""
    reached = [node["status"] for node in nodes if node["status"] is not None]
    latest = max(reached, key=lambda s: s["commit_index"], default={"replicas": ()})
    return {r["node_id"]: kind_of(r) for r in latest["replicas"] if not r["is_voter"]}


def kind_of(replica: Mapping[str, Any]) -> str:
    """A member's kind: voter, learner (a voter once it has caught up), or standby."""
    if replica["is_voter"]:
        return "voter"
    return "standby" if replica["is_standby"] else "learner"


def rows_by_leader(nodes: Nodes) -> dict[int, Mapping[str, Any]]:
    """The members as the leader sees them; without a leader, as the node with the latest commit."""
    reached = [node["status"] for node in nodes if node["status"] is not None]
    best = max(reached, key=lambda s: (s["is_primary"], s["term"], s["commit_index"]), default=None)
    return {row["node_id"]: row for row in best["replicas"]} if best is not None else {}
