"""aiohttp's WebSocketResponse on uvloop, without an access log."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import WSMsgType, web

MEMBERS: set[web.WebSocketResponse] = set()


async def echo(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await ws.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data)
    return ws


async def fanout(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    MEMBERS.add(ws)
    try:
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                for member in tuple(MEMBERS):
                    await member.send_str(message.data)
    finally:
        MEMBERS.discard(ws)
    return ws


async def main() -> None:
    app = web.Application()
    app.add_routes([web.get("/ws/echo", echo), web.get("/ws/fanout", fanout)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1]), backlog=1024).start()
    await asyncio.Event().wait()


uvloop.run(main())
