"""picows on uvloop: the echo of its documentation. aiofastnet is used because it is installed."""

from __future__ import annotations

import sys

import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

MEMBERS: set[WSTransport] = set()


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            # A view, not the copy of the documentation's first example: less work for big frames.
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


class Fanout(Echo):
    def on_ws_connected(self, transport: WSTransport) -> None:
        MEMBERS.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        MEMBERS.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            super().on_ws_frame(transport, frame)
            return
        message = frame.get_payload_as_bytes()
        for member in MEMBERS:
            member.send(frame.msg_type, message)


def make_listener(request: WSUpgradeRequest) -> WSListener:
    return Fanout() if request.path == b"/ws/fanout" else Echo()


async def main() -> None:
    server = await ws_create_server(make_listener, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


uvloop.run(main())
