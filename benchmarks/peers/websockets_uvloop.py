"""websockets on uvloop, with its own `broadcast` for many."""

from __future__ import annotations

import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

MEMBERS: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    assert connection.request
    if connection.request.path != "/ws/fanout":
        async for message in connection:
            await connection.send(message)
        return
    MEMBERS.add(connection)
    try:
        async for message in connection:
            broadcast(MEMBERS, message)
    finally:
        MEMBERS.discard(connection)


async def main() -> None:
    async with serve(handle, "127.0.0.1", int(sys.argv[1]), backlog=1024) as server:
        await server.serve_forever()


uvloop.run(main())
