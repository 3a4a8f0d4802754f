"""Seats of a theatre, booked over HTTP: a Starlette app with a raftha node in every process.

    python examples/bookings.py examples/node-1.toml

    PUT    /seats/12A  {"booking": "b7e1", "name": "Ada"}    201; 409 if another booking has it
    DELETE /seats/12A  {"booking": "b7e1", "name": "Ada"}    204; 409 if this booking hasn't got it
    GET    /seats/12A                                        200; 404 if it is free GET
    /seats?after=12A                                  up to 100 booked seats, in order GET
    /health                                           200; 503 while there is no leader

Theory of operation. Every process takes every request; raftha sends to the leader what only the
leader can do. «If the seat is free, it is mine» is one transaction, so two bookings can't both have
it, even through different processes.

503 means that nothing happened, 504 that it may have. After either, send the same request again, to
any process: the client chooses the booking's id, so the service sees that this booking has the seat
already, and answers with 200 instead of 201.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import raftha


def seat_key(request: Request) -> bytes:
    return b"seat/" + str(request.path_params["seat"]).encode()


async def booking_in(request: Request) -> bytes:
    """The value in the database for a seat: the booking, always encoded in the same way."""
    try:
        body = await request.json()
        return json.dumps({"booking": str(body["booking"]), "name": str(body["name"])}).encode()
    except (ValueError, TypeError, KeyError):
        raise HTTPException(400, 'the body must be {"booking": ..., "name": ...}') from None


async def book(request: Request) -> Response:
    key, wanted = seat_key(request), await booking_in(request)
    receipt = await request.state.ha.transaction(
        [raftha.Missing(key)], [raftha.Put(key, wanted)], otherwise=[raftha.Get(key)]
    )
    if receipt:
        return Response(wanted, 201, media_type="application/json")
    (holder,) = receipt.result
    return Response(holder, 200 if holder == wanted else 409, media_type="application/json")


async def cancel(request: Request) -> Response:
    receipt = await request.state.ha.compare_and_set(
        seat_key(request), await booking_in(request), None
    )
    return Response(status_code=204 if receipt else 409)


async def show(request: Request) -> Response:
    holder = await request.state.ha.get(seat_key(request))
    if holder is None:
        raise HTTPException(404, "this seat is free")
    return Response(holder, media_type="application/json")


async def show_all(request: Request) -> Response:
    after = request.query_params.get("after", "")
    # The next key after this one, and the first after all that begin with "seat/".
    start, end = b"seat/" + after.encode() + b"\0", b"seat0"
    pairs = await request.state.ha.scan(start, end, limit=100)
    return JSONResponse(
        {key.removeprefix(b"seat/").decode(): json.loads(holder) for key, holder in pairs}
    )


async def health(request: Request) -> Response:
    status: raftha.HaStatus = await request.state.ha.get_status()
    body = {
        "node": status.node_id,
        "role": status.role,
        "leader": status.leader_id,
        "sequence": status.sequence,
    }
    return JSONResponse(body, 200 if status.is_running and status.leader_id else 503)


async def on_rejected(request: Request, error: Exception) -> Response:
    """It did not happen: the request is wrong, or can't be served here now."""
    if isinstance(error, raftha.InvalidRequest):
        return JSONResponse({"error": str(error)}, 400)
    return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})


async def on_indeterminate(request: Request, error: Exception) -> Response:
    """It may have happened."""
    retry = "send the same request again, with the same booking: it happens once"
    return JSONResponse({"error": str(error), "retry": retry}, 504)


def make_app(config: raftha.HaConfig) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with raftha.aio.HaManager(config) as ha:
            yield {"ha": ha}  # As `request.state.ha`.

    return Starlette(
        routes=[
            Route("/seats", show_all),
            Route("/seats/{seat}", show),
            Route("/seats/{seat}", book, methods=["PUT"]),
            Route("/seats/{seat}", cancel, methods=["DELETE"]),
            Route("/health", health),
        ],
        exception_handlers={
            raftha.Rejected: on_rejected,
            raftha.Indeterminate: on_indeterminate,
        },
        lifespan=lifespan,
    )


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    config = raftha.HaConfig.from_toml(sys.argv[1])
    host, _, port = config.client_address.rpartition(":")
    uvicorn.run(make_app(config), host=host, port=int(port))


if __name__ == "__main__":
    main()
