"""The reference server: one node of a cluster behind a listener that speaks Redis's protocol.

    server      the process: its configuration, its listener, start and stop
    connection  one client: order, pipelining, flow control
    places      the replies to come, one for each request
    commands    the table of commands, and how each is executed
    tasks       the commands that wait: SCAN, INFO, RAFTHA STATUS ...
    machine     the replicated state machine, written as any user could write it
    journal     the node's latest events, for RAFTHA EVENTS
    glob        the patterns of SCAN

`raftha.client.resp`, which the client shares, parses requests and encodes replies. All replicated
state goes through `raftha.aio.HaManager`, as in any server built on raftha.
"""

from raftha.extras import extra

with extra("server"):
    from raftha.server.server import Server, ServerConfig, run, serve

__all__ = ["Server", "ServerConfig", "run", "serve"]
