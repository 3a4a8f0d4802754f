"""A counter on three nodes: run this with 1, 2 and 3, in three terminals. Then kill one."""

import os
import sys
import time
from contextlib import suppress

import raftha

MEMBERS = {1: "127.0.0.1:7101", 2: "127.0.0.1:7102", 3: "127.0.0.1:7103"}


class Counter(raftha.StateMachine):
    @raftha.command
    def add(self, txn: raftha.Transaction, amount: int) -> int:  # runs on every node, in one order
        total = int(txn.get(b"total") or 0) + amount
        txn.put(b"total", b"%d" % total)
        return total


def watch(event: raftha.HaEvent) -> None:
    if isinstance(event, raftha.events.FailoverCompleted):
        print(f"failover: node {event.new_primary} leads, after {event.duration_ms:.0f} ms")


if __name__ == "__main__":
    node, folder = int(sys.argv[1]), f"quickstart-data/{sys.argv[1]}"
    config = raftha.HaConfig(
        node_id=node, data_dir=folder, members=MEMBERS, bootstrap=True, on_event=watch
    )
    with suppress(KeyboardInterrupt), raftha.HaManager(config, state_machine=Counter()) as ha:
        print(f"node {node} is up: Ctrl-C stops it, `kill -9 {os.getpid()}` crashes it")
        while True:
            try:
                total = ha.execute("add", 1, timeout=5).result  # on two disks when it returns
                print(f"total {total}, node {ha.get_status().leader_id} leads")
            except raftha.RafthaError as error:
                print(f"{type(error).__name__}: {error}")
            time.sleep(1)  # A person reads along.
