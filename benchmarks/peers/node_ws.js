// Node's ws, with the loop over `clients` that its README broadcasts with.
"use strict";
const { WebSocketServer, WebSocket } = require("ws");

const members = new Set();
const server = new WebSocketServer({
  host: "127.0.0.1", port: Number(process.argv[2]), perMessageDeflate: true, backlog: 1024,
});
server.on("connection", (ws, request) => {
  const isFanout = request.url === "/ws/fanout";
  if (isFanout) members.add(ws);
  ws.on("error", () => {});
  ws.on("close", () => members.delete(ws));
  ws.on("message", (data, isBinary) => {
    if (!isFanout) { ws.send(data, { binary: isBinary }); return; }
    for (const member of members)
      if (member.readyState === WebSocket.OPEN) member.send(data, { binary: isBinary });
  });
});
