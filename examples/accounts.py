"""Accounts and the money in them, over HTTP: a plain threaded server with a raftha node inside.

    python examples/accounts.py examples/node-1.toml

    POST /movements  {"id": "m1", "from": "", "to": "ada", "amount": 5}
                            201; 422 if there isn't enough in the account "from"
    GET  /accounts/ada      200; 404 if there is no such account GET  /health            200; 503
    while there is no leader

Theory of operation. The command `move` is replicated: every process runs it, in the same order, so
it may use nothing but its arguments and the transaction. An exception in it undoes its changes.
Money comes in from the account "", which has no balance, and leaves by it.

503 means that nothing happened, 504 that it may have. After either, send the same request again, to
any process: the client chooses the movement's id, so the second time `move` sees that it is done,
and the service answers with 200 instead of 201. (A service that lives for years would forget these
ids after a while, by one more command.)
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import raftha

BODY_BYTES_MAX = 64 * 1024
NAME_CHARACTERS_MAX = 100

Answer = tuple[int, dict[str, Any]]


class Accounts(raftha.StateMachine):
    """Balances, under "account/", and the movements that are done, under "movement/"."""

    @raftha.command
    def move(
        self, txn: raftha.Transaction, movement: str, source: str, target: str, amount: int
    ) -> bool:
        """Move `amount`; False if that movement was done before."""
        done = f"movement/{movement}".encode()
        if txn.get(done) is not None:
            return False
        for account, change in ((source, -amount), (target, amount)):
            if account:
                key = f"account/{account}".encode()
                balance = int(txn.get(key) or 0) + change
                if balance < 0:
                    raise ValueError(f"{account} lacks {-balance}")
                txn.put(key, b"%d" % balance)
        txn.put(done, b"")
        return True


class Server(ThreadingHTTPServer):
    """A thread for each connection; all threads use one manager."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], ha: raftha.HaManager) -> None:
        super().__init__(address, Handler)
        self.ha = ha


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # An answer is one packet.

    def do_GET(self) -> None:
        self.answer(self.health if self.path == "/health" else self.show)

    def do_POST(self) -> None:
        self.answer(self.move)

    def move(self) -> Answer:
        if self.path != "/movements":
            return 404, {"error": "there is only /movements"}
        size = self.headers["Content-Length"] or ""
        if not size.isdecimal() or int(size) > BODY_BYTES_MAX:
            self.close_connection = True  # Where the next request begins is not known.
            return 400, {"error": f"a body needs a Content-Length up to {BODY_BYTES_MAX}"}
        body = json.loads(self.rfile.read(int(size)))
        movement, source, target = str(body["id"]), str(body["from"]), str(body["to"])
        amount = body["amount"]
        if max(map(len, (movement, source, target))) > NAME_CHARACTERS_MAX:
            return 400, {"error": f"names have up to {NAME_CHARACTERS_MAX} characters"}
        if type(amount) is not int or amount <= 0:
            return 400, {"error": "an amount is a whole number over 0"}
        receipt = self.server.ha.execute("move", movement, source, target, amount)
        return 201 if receipt.result else 200, {"movement": movement}

    def show(self) -> Answer:
        prefix, _, account = self.path.rpartition("/")
        if prefix != "/accounts" or not account:
            return 404, {"error": "there are /accounts/NAME and /health"}
        account = unquote(account)
        balance = self.server.ha.get(f"account/{account}".encode())
        if balance is None:
            return 404, {"error": "there is no such account"}
        return 200, {"account": account, "balance": int(balance)}

    def health(self) -> Answer:
        status = self.server.ha.get_status()
        return 200 if status.is_running and status.leader_id else 503, {
            "node": status.node_id,
            "role": status.role,
            "leader": status.leader_id,
            "sequence": status.sequence,
        }

    def answer(self, serve: Callable[[], Answer]) -> None:
        try:
            code, body = serve()
        except raftha.CommandFailed as error:  # It raised; nothing was changed.
            code, body = 422, {"error": error.detail}
        except raftha.InvalidRequest as error:
            code, body = 400, {"error": str(error)}
        except raftha.Rejected as error:  # It did not happen, and can't happen here now.
            code, body = 503, {"error": str(error)}
        except raftha.Indeterminate as error:  # It may have happened.
            retry = "send the same request again, with the same id: it happens once"
            code, body = 504, {"error": str(error), "retry": retry}
        except raftha.RafthaError as error:  # This node is broken.
            code, body = 500, {"error": str(error)}
        except (ValueError, TypeError, KeyError) as error:
            code, body = 400, {"error": f"not a movement: {error!r}"}
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    config = raftha.HaConfig.from_toml(sys.argv[1])
    host, _, port = config.client_address.rpartition(":")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Stop cleanly, as Ctrl-C does.
    with (
        contextlib.suppress(KeyboardInterrupt),
        raftha.HaManager(config, state_machine=Accounts()) as ha,
        Server((host, int(port)), ha) as server,
    ):
        server.serve_forever()


if __name__ == "__main__":
    main()
