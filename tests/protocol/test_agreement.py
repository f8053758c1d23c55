"""The engine, `websockets` and `wsproto` read the same bytes, whole and damaged, and agree.

On which messages came before the end, and on how it came: by a close frame, by a violation and its
code, or not at all. Where the others differ from the RFC or leave a choice, `_same_end` says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, PayloadTooBig
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Opcode as TheirOpcode
from websockets.protocol import SERVER, State
from websockets.server import ServerProtocol
from wsproto.extensions import PerMessageDeflate as WsprotoDeflate
from wsproto.frame_protocol import FrameProtocol, ParseFailed
from wsproto.frame_protocol import Opcode as WsprotoOpcode

from support.figures import longer, record
from support.wire import frame
from wsmiddleware.protocol.deflate import Deflate, compress
from wsmiddleware.protocol.engine import Close, Engine, Fail
from wsmiddleware.protocol.frames import Opcode

MAX_SIZE = 100_000

Message = str | bytes

#: `websockets` takes a close frame between fragments for a violation; RFC 6455, section 5.4, lets
#: control frames stand there.
INCOMPLETE = "close inside a message"


class Outcome(NamedTuple):
    """What a peer's bytes came to: messages, then how it ended (kind, code, reason)."""

    messages: list[Message]
    kind: str = "open"
    code: int = 0
    reason: str = ""


# -- the three ------------------------------------------------------------------------------------


def by_engine(chunks: list[bytes], is_compressed: bool) -> Outcome:
    engine = Engine(max_message_size=MAX_SIZE, deflate=Deflate() if is_compressed else None)
    messages: list[Message] = []
    for chunk in chunks:
        events = engine.receive(chunk)
        while engine.more:
            events += engine.receive(b"")
        for event in events:
            if isinstance(event, str | bytes):
                messages.append(event)
            elif isinstance(event, Close):
                return Outcome(messages, "close", *event)
            elif isinstance(event, Fail):
                return Outcome(messages, "fail", *event)
    return Outcome(messages)


def by_websockets(chunks: list[bytes], is_compressed: bool) -> Outcome:
    peer = ServerProtocol(state=State.OPEN, max_size=MAX_SIZE)
    assert peer.side is SERVER
    if is_compressed:
        peer.extensions = [PerMessageDeflate(True, True, 15, 15)]
    messages: list[Message] = []
    parts: list[bytes] = []
    is_text = False
    for chunk in chunks:
        peer.receive_data(chunk)
        for got in peer.events_received():
            if got.opcode in (TheirOpcode.TEXT, TheirOpcode.BINARY):
                parts, is_text = [], got.opcode is TheirOpcode.TEXT
            if got.opcode in (TheirOpcode.TEXT, TheirOpcode.BINARY, TheirOpcode.CONT):
                parts.append(bytes(got.data))
                if got.fin:
                    whole = b"".join(parts)
                    try:
                        messages.append(whole.decode() if is_text else whole)
                    except UnicodeDecodeError:  # its Sans-I/O core leaves that to the layer above
                        return Outcome(messages, "fail", 1007)
        if peer.close_rcvd is not None and not isinstance(peer.parser_exc, Exception):
            return Outcome(messages, "close", peer.close_rcvd.code, peer.close_rcvd.reason)
        if peer.parser_exc is not None:
            assert not isinstance(peer.parser_exc, ConnectionClosed)
            if "incomplete fragmented message" in str(peer.parser_exc):
                return Outcome(messages, "fail", 1002, INCOMPLETE)
            too_big = isinstance(peer.parser_exc, PayloadTooBig)
            sent = peer.close_sent
            return Outcome(messages, "fail", 1009 if too_big else sent.code if sent else 1006)
    return Outcome(messages)


def by_wsproto(chunks: list[bytes], is_compressed: bool) -> Outcome:
    deflate = WsprotoDeflate(client_no_context_takeover=True, server_no_context_takeover=True)
    deflate._enabled = True
    peer = FrameProtocol(client=False, extensions=[deflate] if is_compressed else [])
    messages: list[Message] = []
    parts: list[Any] = []
    for chunk in chunks:
        peer.receive_bytes(chunk)
        try:
            for got in peer.received_frames():
                if got.opcode is WsprotoOpcode.CLOSE:
                    code, reason = got.payload
                    return Outcome(messages, "close", int(code), reason or "")
                if not got.opcode.iscontrol():
                    parts.append(got.payload)
                    if got.message_finished:
                        messages.append(type(parts[0])().join(parts))
                        parts = []
        except ParseFailed as exc:
            return Outcome(messages, "fail", int(exc.code))
    return Outcome(messages)


# -- what they are given --------------------------------------------------------------------------

texts = st.text(max_size=40) | st.text(min_size=1, max_size=6).map(lambda text: text * 60)
payloads = texts.map(lambda text: text.encode()) | st.binary(max_size=200)
codes = st.sampled_from([1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999, 0, 999, 1004, 1005, 1006])
closes = st.builds(
    lambda code, reason: code.to_bytes(2, "big") + reason.encode(), codes, st.text(max_size=20)
) | st.sampled_from([b"", b"\x03", b"\x03\xe8\xff", b"\x03\xe8" + b"x" * 123])


@st.composite
def frames(draw: st.DrawFn, is_compressed: bool) -> bytes:
    """One frame, or one message in a few, mostly valid."""
    kind = draw(st.sampled_from(["message"] * 6 + ["control", "close", "odd"]))
    if kind == "control":
        opcode = draw(st.sampled_from([Opcode.PING, Opcode.PONG]))
        return frame(opcode, draw(st.binary(max_size=125)))
    if kind == "close":
        return frame(Opcode.CLOSE, draw(closes))
    if kind == "odd":
        first = draw(st.integers(0, 255))
        wire = bytearray(frame(Opcode.TEXT, draw(payloads)))
        wire[0] = first
        return bytes(wire)
    is_text = draw(st.booleans())
    payload = draw(texts).encode() if is_text else draw(payloads)
    packed = compress(payload, 15) if is_compressed and draw(st.booleans()) else None
    wire, opcode = b"", (0x40 if packed is not None else 0) | (1 if is_text else 2)
    rest = packed if packed is not None else payload
    for _ in range(draw(st.integers(0, 3))):
        cut = draw(st.integers(0, len(rest)))
        wire += frame(opcode, rest[:cut], fin=False)
        rest, opcode = rest[cut:], 0
    return wire + frame(opcode, rest)


@st.composite
def streams(draw: st.DrawFn, is_compressed: bool, is_damaged: bool) -> list[bytes]:
    wire = bytearray(b"".join(draw(st.lists(frames(is_compressed), max_size=6))))
    if is_damaged and wire:
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.integers(0, len(wire) - 1))
            match draw(st.sampled_from(["change", "drop", "add", "cut"])):
                case "change":
                    wire[place] = draw(st.integers(0, 255))
                case "drop":
                    del wire[place : place + draw(st.integers(1, 4))]
                case "add":
                    wire[place:place] = draw(st.binary(min_size=1, max_size=4))
                case _:
                    del wire[place + 1 :]
            if not wire:
                break
    data = bytes(wire)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# -- agreement ------------------------------------------------------------------------------------


def _same_end(ours: Outcome, theirs: Outcome) -> bool:
    """Both end in the same way, or one of them has a choice that the RFC leaves."""
    if ours.kind != theirs.kind:
        # We fail at the first byte that proves it; the other may wait for the frame's or the
        # message's end, which has not come.
        return ours.kind == "fail" and theirs.kind == "open"
    # Which of several faults is named, and how broken compression is called, is a choice.
    return ours.kind == "fail" or ours[2:] == theirs[2:]


_tried = {"inputs": 0, "valid": 0}


def agree(chunks: list[bytes], is_compressed: bool) -> None:
    ours = by_engine(chunks, is_compressed)
    _tried["inputs"] += 1
    _tried["valid"] += ours.kind != "fail"
    for judge in (by_websockets, by_wsproto):
        theirs = judge(chunks, is_compressed)
        if judge is by_wsproto and ours.kind == "close" and ours.code == 1014:
            continue  # "bad gateway" of the IANA registry is not in its list
        if ours.kind == "close" and theirs.reason == INCOMPLETE:
            continue
        if judge is by_websockets and ours.reason == "length not in its shortest form":
            continue  # section 5.2 asks for that form; it takes any
        if ours.reason == "invalid compressed data":
            # They take a message whose last block is cut off for a whole one; zlib does not tell.
            assert ours.messages == theirs.messages[: len(ours.messages)]
            continue
        assert ours.messages == theirs.messages, judge.__name__
        assert _same_end(ours, theirs), (judge.__name__, ours, theirs)
    # Of two faults in one message (1007 both), the chunks decide which one shows first.
    assert ours[:3] == by_engine([b"".join(chunks)], is_compressed)[:3]


EXAMPLES = longer(100, 4000)
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@given(streams(False, False))
@fuzzed
def test_all_agree_on_frames(chunks: list[bytes]) -> None:
    agree(chunks, False)


@given(streams(False, True))
@fuzzed
def test_all_agree_on_damaged_frames(chunks: list[bytes]) -> None:
    agree(chunks, False)


@given(streams(True, False))
@fuzzed
def test_all_agree_on_compressed_frames(chunks: list[bytes]) -> None:
    agree(chunks, True)


@given(streams(True, True))
@fuzzed
def test_all_agree_on_damaged_compressed_frames(chunks: list[bytes]) -> None:
    agree(chunks, True)


@given(st.lists(st.binary(max_size=100), max_size=5), st.booleans())
@fuzzed
def test_all_agree_on_any_bytes(chunks: list[bytes], is_compressed: bool) -> None:
    agree(chunks, is_compressed)


def test_agreement_was_tried() -> None:
    """Not least: that the inputs were neither all valid nor all broken."""
    inputs, valid = _tried["inputs"], _tried["valid"]
    if not inputs:
        return  # asked for by itself
    record(
        "byte streams that the engine, websockets and wsproto read",
        bound="all agree on messages and end",
        measured=f"{inputs:,} inputs, {valid:,} of them valid, all agreed",
    )
    assert inputs / 10 < valid < inputs * 0.95
