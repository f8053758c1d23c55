"""Hours in minutes: ``python tests/reliability/soak.py --seconds 600``.

`run` serves, and clients come, speak and go without end: 2,000 connections at a time, messages of
1 B to 1 MiB, compression on half of them, ends of every kind. Every two seconds the server says
what it holds, and that must not grow: neither from before the run to after it, nor, as for memory,
over the run's second half. Exit status 1 where it does, or where the log has a line above INFO.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import json
import random
import resource
import socket
import statistics
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import gevent

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import Process, Server, wait_until
from support.figures import write_figures
from support.procfs import descriptors, memory
from support.servers import serve_by, write_app
from support.wire import CLOSE, PING, TEXT, close_frame, frame, peer_of

APP = """
    import ctypes, gc, json, logging, os, gevent
    from greenlet import greenlet
    from wsmiddleware import WebSocketMiddleware, websocket_info

    logging.basicConfig(level=logging.WARNING)

    def watchers():
        # What the loop watches, timers included, as the package and gevent hold them.
        from gevent.libev.corecext import io, timer
        return sum(isinstance(each, (io, timer)) for each in gc.get_objects())

    # What the allocator keeps for later is not what we hold.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)

    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        channel = app.registry.channels["soak"]
        gc.collect()
        trim(0)
        objects = gc.get_objects()
        return [json.dumps({
            "greenlets": sum(isinstance(each, greenlet) for each in objects),
            "watchers": watchers(),
            "objects": len(objects),
            "open": channel.size(),
            "unfinished": len(channel.unfinished),
            "groups": len(channel._groups),
            "opened": app.metrics.opened["soak"],
            "messages": app.metrics.messages_received,
        }).encode()]

    app = WebSocketMiddleware(page, config=False, close_timeout=2, ping_interval=5, ping_timeout=5)
"""

LISTENER = """
    import gevent

    class Soak(WebSocketListener):
        @classmethod
        def on_first_open(cls, wsclients):
            gevent.spawn(cls.push, wsclients)

        @staticmethod
        def push(wsclients):
            while wsclients.size():
                wsclients.broadcast("tick")
                gevent.sleep(5)

        def on_open(self, wsclient):
            wsclient.join(f"group-{hash(wsclient.id) % 50}")
            return "welcome"

        def on_message(self, wsclient, message):
            if message == "close":
                wsclient.close(4001)
            elif message == "slow":
                gevent.sleep(0.05)
            elif message == "group":
                wsclient.broadcast("to the group", group=next(iter(wsclient.groups)))
            else:
                return message

        def on_close(self, wsclient, reason_phrase):
            gevent.sleep(0)
"""

OFFER = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"


def main() -> int:
    """Soak for as long as the command line says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=2000)
    arguments = parser.parse_args()
    limit = 3 * arguments.clients + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, hard), hard))
    with tempfile.TemporaryDirectory() as folder:
        write_app(Path(folder), APP, soak=LISTENER)
        with serve_by("run", Path(folder)) as process:
            result = soak(process, arguments.clients, arguments.seconds)
    for line in result["wrong"]:
        print(f"soak: {line}")
    write_figures("soak", result)
    print(f"soak: {result['summary']}")
    return 1 if result["wrong"] else 0


def soak(process: Process, count: int, seconds: float) -> dict[str, Any]:
    """Churn, and look; the figures, and what is wrong with them."""
    server, pid = process.server, process.popen.pid
    # Once to its full size first: what the allocator keeps for ever has come before it is judged.
    churn(server, pid, count, min(10.0, seconds / 4))
    wait_until(lambda: probe(server, pid)["unfinished"] == 0, timeout=30)
    before = probe(server, pid)
    samples = churn(server, pid, count, seconds)
    wait_until(lambda: probe(server, pid)["unfinished"] == 0, timeout=30)
    # Idle workers of the pool end with the last connection's clock.
    wait_until(lambda: probe(server, pid)["greenlets"] <= before["greenlets"] + 5, timeout=30)
    after = probe(server, pid)
    return judge(process, count, seconds, before, after, samples)


def probe(server: Server, pid: int) -> dict[str, float]:
    """What the server holds now."""
    found: dict[str, float] = json.loads(server.get("/").body)
    return {**found, "memory": memory(pid) / 2**20, "descriptors": descriptors(pid)}


def churn(server: Server, pid: int, count: int, seconds: float) -> list[dict[str, float]]:
    """Clients come and go; gives a sample of each second but the first few."""
    deadline = time.monotonic() + seconds
    visitors = [gevent.spawn(visit_until, server, deadline, seed) for seed in range(count)]
    samples = []
    while time.monotonic() < deadline:
        gevent.sleep(min(2.0, seconds / 10))
        samples.append({"at": time.monotonic(), **probe(server, pid)})
    gevent.joinall(visitors, raise_error=True, timeout=60)
    assert all(each.ready() for each in visitors), "clients hang"
    return samples


def visit_until(server: Server, deadline: float, seed: int) -> None:
    chance = random.Random(seed)
    gevent.sleep(chance.random() * 2)
    while time.monotonic() < deadline:
        try:
            visit(server, chance, deadline)
        except (ConnectionError, TimeoutError):
            gevent.sleep(0.1)


def visit(server: Server, chance: random.Random, deadline: float) -> None:
    """One connection: a few messages over some seconds, then one of six ends."""
    is_compressed = chance.random() < 0.5
    with peer_of(server, "/ws/soak", extensions=OFFER if is_compressed else None) as peer:
        for _ in range(chance.randrange(1, 6)):
            size = int(2 ** chance.uniform(0, 20 if chance.random() < 0.05 else 12))
            text = (f"x{chance.randrange(10)}," * (size // 3 + 1))[:size]
            peer.send(encode(text, is_compressed))
            if chance.random() < 0.2:
                peer.send(frame(TEXT, chance.choice(["slow", "group"])), frame(PING, "p"))
            while True:  # until the echo has come: other messages may come first
                opcode, payload = peer.read()
                if opcode == CLOSE:
                    return
                if opcode & 0x40 or len(payload) > 20 or payload == text.encode():
                    break
            gevent.sleep(min(chance.uniform(0, 6), max(0.0, deadline - time.monotonic())))
        end(peer, chance)


def encode(text: str, is_compressed: bool) -> bytes:
    if not is_compressed or len(text) < 50:
        return frame(TEXT, text)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    data = packer.compress(text.encode()) + packer.flush(zlib.Z_SYNC_FLUSH)
    return frame(0x40 | TEXT, data[:-4])


def end(peer: Any, chance: random.Random) -> None:
    match chance.randrange(6):
        case 0:
            peer.send(close_frame(1000))
            while peer.read()[0] != CLOSE:
                pass
        case 1:
            peer.send(frame(TEXT, "close"))
            while peer.read()[0] != CLOSE:
                pass
            peer.send(close_frame(4001))
        case 2:
            peer.reset()
        case 3:
            peer.send(frame(TEXT, "half a message", fin=False))
        case 4:
            peer.send(b"\xff\xff rubbish")
        case _:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


#: What may be more at the end than at the beginning: row, growth allowed, unit.
ENDS = [
    ("descriptors", 2, ""),
    ("greenlets", 5, ""),
    ("watchers", 5, ""),
    ("open", 0, ""),
    ("unfinished", 0, ""),
    ("groups", 0, ""),
    ("memory", 12, "MiB"),
]
#: MiB an hour of resident memory, over the second half of a run of some minutes.
SLOPE = 60.0


def judge(
    process: Process,
    count: int,
    seconds: float,
    before: dict[str, float],
    after: dict[str, float],
    samples: list[dict[str, float]],
) -> dict[str, Any]:
    """The rows of the table and what is wrong with them."""
    wrong = []
    rows = []
    for name, allowed, unit in ENDS:
        growth = after[name] - before[name]
        rows.append(
            {
                "what": name,
                "before": f"{before[name]:.0f} {unit}".strip(),
                "after": f"{after[name]:.0f} {unit}".strip(),
                "bound": f"+{allowed} {unit}".strip(),
            }
        )
        if growth > allowed:
            wrong.append(f"{name}: {before[name]:.1f} before, {after[name]:.1f} after")
    half = samples[len(samples) // 2 :]
    slope = 0.0
    if len(half) >= 10:
        line = statistics.linear_regression(
            [each["at"] for each in half], [each["memory"] for each in half]
        )
        slope = line.slope * 3600
        # A short run is all noise: it is judged by its ends.
        if seconds >= 300 and slope > SLOPE:
            wrong.append(f"memory grows by {slope:.0f} MiB an hour")
    odd = [line for line in process.lines if "WARNING" in line or "ERROR" in line]
    odd += [line for line in process.lines if "Traceback" in line]
    wrong += [f"in the log: {line.strip()}" for line in odd[:5]]
    opened = int(after["opened"] - before["opened"])
    messages = int(after["messages"] - before["messages"])
    summary = (
        f"{seconds:.0f} s, {count:,} clients at a time, {opened:,} connections, "
        f"{messages:,} messages, {len(odd)} odd log lines"
    )
    if len(half) >= 10:
        summary += f", memory {slope:+.0f} MiB an hour over the second half"
    return {"summary": summary, "rows": rows, "wrong": wrong}


if __name__ == "__main__":
    sys.exit(main())
