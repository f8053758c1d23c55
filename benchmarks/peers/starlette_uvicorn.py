"""Starlette under uvicorn with uvloop, httptools and the WebSocket protocol that it picks."""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

MEMBERS: set[WebSocket] = set()


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    while (message := await ws.receive())["type"] == "websocket.receive":
        if message.get("text") is not None:
            await ws.send_text(message["text"])
        else:
            await ws.send_bytes(message["bytes"])


async def fanout(ws: WebSocket) -> None:
    await ws.accept()
    MEMBERS.add(ws)
    try:
        async for message in ws.iter_text():
            for member in tuple(MEMBERS):
                await member.send_text(message)
    finally:
        MEMBERS.discard(ws)


app = Starlette(routes=[WebSocketRoute("/ws/echo", echo), WebSocketRoute("/ws/fanout", fanout)])
uvicorn.run(
    app,
    host="127.0.0.1",
    port=int(sys.argv[1]),
    loop="uvloop",
    log_level="error",
    access_log=False,
    backlog=1024,
)
