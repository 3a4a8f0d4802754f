"""The reference server: one node of a cluster behind a listener that speaks Redis's protocol.

    server      the process: its configuration, its listener, its end
    connection  one client: order, pipelining, flow control
    commands    what each command is, and how it is carried out
    tasks       the commands that take a while
    machine     what is replicated: a state machine as any user could write it
    glob        the patterns of SCAN

Bytes to requests and replies to bytes is `raftha.client.resp`, which the client shares. Everything
replicated goes through `raftha.aio.HaManager`, as in any server built on raftha.
"""

from raftha.extras import extra

with extra("server"):
    from raftha.server.server import Server, ServerConfig, run, serve

__all__ = ["Server", "ServerConfig", "run", "serve"]
