"""The client's side of the opening handshake: what is sent, and what is taken for an answer."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterable

import pytest

from wsmiddleware.exceptions import HandshakeError
from wsmiddleware.protocol.deflate import Deflate
from wsmiddleware.protocol.handshake import accept_key
from wsmiddleware.protocol.opening import (
    MAX_BODY_SIZE,
    MAX_HEAD_SIZE,
    MAX_HEADERS,
    Agreement,
    Opening,
    Response,
    header_lines,
)
from wsmiddleware.protocol.uri import parse_url

TARGET = parse_url("ws://host:8000/chat?x=1")
DEFLATE = "permessage-deflate; server_no_context_takeover"


def answer(opening: Opening, *, status: str = "HTTP/1.1 101 Switching", **changed: object) -> bytes:
    """A valid answer; a keyword changes a header, None leaves it out, a list repeats it."""
    headers: dict[str, object] = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-accept": accept_key(opening.key),
    }
    headers.update({name.replace("_", "-"): value for name, value in changed.items()})
    lines = [status]
    for name, value in headers.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"{name}: {value}" for value in values if value is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def agree(opening: Opening, data: bytes) -> Agreement:
    response = opening.feed(data)
    assert response is not None
    return opening.agree(response)


def test_request_is_that_of_the_rfc() -> None:
    opening = Opening(TARGET, headers=[("Origin", "http://a")], subprotocols=["chat", "v2"])
    lines = opening.request.decode().split("\r\n")
    assert lines[0] == "GET /chat?x=1 HTTP/1.1"
    assert lines[-2:] == ["", ""]
    assert set(lines[1:-2]) == {
        "Host: host:8000",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {opening.key}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: chat, v2",
        "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
        "client_no_context_takeover; client_max_window_bits",
        "Origin: http://a",
    }


def test_key_is_new_each_time() -> None:
    assert Opening(TARGET).key != Opening(TARGET).key


def test_host_may_be_another() -> None:
    request = Opening(TARGET, headers=[("host", "virtual")]).request
    assert b"\r\nHost: virtual\r\n" in request
    assert request.lower().count(b"host:") == 1


def test_answer_is_accepted() -> None:
    opening = Opening(TARGET, subprotocols=["chat"])
    data = answer(opening, sec_websocket_protocol="chat", sec_websocket_extensions=DEFLATE)
    assert agree(opening, data + b"\x81\x01x") == ("chat", Deflate())
    assert opening.leftover == b"\x81\x01x"


def test_answer_may_come_byte_by_byte_and_after_interim_ones() -> None:
    opening = Opening(TARGET)
    data = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(opening)
    for index in range(len(data) - 1):
        assert opening.feed(data[index : index + 1]) is None
    assert agree(opening, data[-1:]) == (None, None)
    assert opening.leftover == b""


@pytest.mark.parametrize(
    "changed",
    [
        {"upgrade": "WebSocket"},
        {"connection": "keep-alive, upgrade"},
        {"connection": ["keep-alive", "UPGRADE"]},
        {"status": "HTTP/1.1 101"},
        {"status": "HTTP/1.1 101 "},
        {"sec_websocket_extensions": ""},
        {"server": "\xff"},
    ],
)
def test_answer_may_look_like_this(changed: dict[str, str]) -> None:
    opening = Opening(TARGET)
    assert agree(opening, answer(opening, **changed)) == (None, None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"upgrade": None}, "Upgrade is missing"),
        ({"upgrade": "h2c"}, "'h2c'"),
        ({"upgrade": "websocket, h2c"}, "Upgrade"),
        ({"connection": None}, "Connection is missing"),
        ({"connection": "close"}, "'close'"),
        ({"connection": "upgraded"}, "'upgraded'"),
        ({"sec_websocket_accept": None}, "Accept missing"),
        ({"sec_websocket_accept": accept_key("AAAAAAAAAAAAAAAAAAAAAA==")}, "Accept"),
        ({"sec_websocket_accept": ["a", "b"]}, "comes 2 times"),
        ({"sec_websocket_protocol": "other"}, "'other' was not offered"),
        ({"sec_websocket_protocol": "CHAT"}, "'CHAT' was not offered"),
        ({"sec_websocket_protocol": ["chat", "chat"]}, "comes 2 times"),
        ({"sec_websocket_extensions": "x-mux"}, "x-mux"),
        ({"sec_websocket_extensions": f"{DEFLATE}, {DEFLATE}"}, "more than was offered"),
        ({"sec_websocket_extensions": [DEFLATE, DEFLATE]}, "comes 2 times"),
        ({"sec_websocket_extensions": "permessage-deflate"}, "server_no_context_takeover"),
        ({"sec_websocket_extensions": f"{DEFLATE}; client_max_window_bits=7"}, "7"),
        ({"sec_websocket_extensions": f"{DEFLATE};;"}, "expected a name"),
        ({"status": "HTTP/1.0 101 Old"}, "HTTP/1.0"),
        ({"status": "HTTP/2 101 New"}, "no HTTP"),
        ({"status": "HTTP/1.1 0101 Zero"}, "no HTTP"),
        ({"status": "ICY 200 OK"}, "no HTTP"),
        ({"bad header": "x"}, "broken header"),
        ({"folded": "a\r\n b"}, "broken header"),
        ({"bare": "a\nb: c"}, "broken header"),
        ({"nul": "a\0b"}, "broken header"),
    ],
)
def test_answer_is_refused(changed: dict[str, str], words: str) -> None:
    opening = Opening(TARGET, subprotocols=["chat"])
    with pytest.raises(HandshakeError, match=words):
        agree(opening, answer(opening, **changed))


def test_extension_that_was_not_offered_is_refused() -> None:
    opening = Opening(TARGET, compression=False)
    assert b"Extensions" not in opening.request
    with pytest.raises(HandshakeError, match="was not offered"):
        agree(opening, answer(opening, sec_websocket_extensions=DEFLATE))


def test_window_bits_of_the_answer_bind_us() -> None:
    opening = Opening(TARGET)
    data = answer(opening, sec_websocket_extensions=f"{DEFLATE}; client_max_window_bits=10")
    assert agree(opening, data).deflate == Deflate(10)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9\r\n", "no HTTP: 'SSH-2.0"),
        (b"\x15\x03\x01\x00\x02", "no HTTP"),
        (b"HTTP/1.1 101 Swi", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * (MAX_HEAD_SIZE // 6 + 1), "more than"),
        (b"HTTP/1.1 100 Go on\r\n\r\n" * (MAX_HEAD_SIZE // 22 + 1), "more than"),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes, words: str) -> None:
    opening = Opening(TARGET)
    with pytest.raises(HandshakeError, match=words):
        assert opening.feed(data) is None
        opening.feed(b"")


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"Content-Length: 4\r\n\r\nbodymore", b"body"),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nbod\r\n1;x=y\r\ny\r\n0\r\n\r\n", b"body"),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nzz\r\n", b"body"),
        (b"Content-Length: 0\r\n\r\n", b""),
        (b"Content-Length: 99999999999999999999999\r\n\r\n" + b"x" * MAX_BODY_SIZE,
         b"x" * MAX_BODY_SIZE),
        (b"\r\n" + b"x" * 2 * MAX_BODY_SIZE, b"x" * MAX_BODY_SIZE),
    ],
)  # fmt: skip
def test_refusal_has_a_body(data: bytes, body: bytes) -> None:
    response = Opening(TARGET).feed(b"HTTP/1.1 403 Forbidden\r\n" + data)
    assert response is not None
    assert (response.status, response.reason, response.body) == (403, "Forbidden", body)


@pytest.mark.parametrize(
    "head", [b"\r\n", b"Content-Length: 9\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n9\r\n"]
)
def test_body_of_a_refusal_may_be_cut_off(head: bytes) -> None:
    opening = Opening(TARGET)
    assert opening.refusal() is None
    assert opening.feed(b"HTTP/1.1 503 Busy\r\n" + head + b"bod") is None
    kept, ended = opening.refusal(), opening.feed(b"")
    assert kept == ended
    assert kept is not None
    assert kept.text == "bod"


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (Response(404, "Not Found", (), b"no such\n channel"), "404 Not Found: no such channel$"),
        (Response(403, "", (), b"\xff\xfe"), "403"),
        (Response(301, "Moved", (("location", "wss://new/"),)), "redirect to 'wss://new/'"),
        (Response(302, "Found", ()), "302 Found$"),
        (Response(401, "No", (("www-authenticate", "Bearer"),)), "401 No .'Bearer'"),
        (Response(500, "Oops", (), b"x" * 500), "x{200}…$"),
        (Response(500, "Oops", (), b"\x1b[2J"), "Oops$"),
        (Response(200, "OK", (), b"page"), "200 OK: page"),
    ],
)
def test_refusal_is_told(response: Response, words: str) -> None:
    with pytest.raises(HandshakeError, match=words) as caught:
        Opening(TARGET).agree(response)
    assert caught.value.response is response


# -- what an answer may cost -----------------------------------------------------------------------

LINES = {
    "blanks": b"X:" + b" " * 65_000 + b"a\r\n",
    "blanks and tabs": b"X: a" + b" \t" * 32_000 + b"a\r\n",
    "names": b"".join(b"x%d:\r\n" % number for number in range(MAX_HEADERS - 3)),
    "long name": b"x" * 65_000 + b": a\r\n",
    "no name": b"x" * 65_000 + b"\r\n",
    "extensions": b"Sec-WebSocket-Extensions: " + b"a," * 32_000 + b"\r\n",
    "parameters": b"Sec-WebSocket-Extensions: permessage-deflate" + b";a" * 32_000 + b"\r\n",
    "quotes": b'Sec-WebSocket-Extensions: a;a="' + b"\\a" * 32_000 + b"\r\n",
    "connection": b"Connection: " + b"a, " * 21_000 + b"\r\n",
}


def seconds(opening: Opening, pieces: Iterable[bytes]) -> float:
    """The processor time that an answer takes, whatever comes of it."""
    started = time.thread_time()
    with contextlib.suppress(HandshakeError):
        for piece in pieces:
            response = opening.feed(piece)
            if response is not None:
                opening.agree(response)
    return time.thread_time() - started


@pytest.mark.parametrize("kind", LINES)
def test_answer_of_any_shape_costs_little(kind: str) -> None:
    best = 9.0
    for _ in range(3):
        opening = Opening(TARGET)
        best = min(best, seconds(opening, [answer(opening)[:-2] + LINES[kind] + b"\r\n"]))
    assert best < 0.05


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n" + b"X-A: b\r\n" * 7 + b"X:" + b" a" * 32_000,
        b"HTTP/1.1 100 Go on\r\n\r\n" * 2900,
        b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 10_000,
        b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 60_000,
        b"HTTP/1.1 403 No\r\n\r\n" + b"a" * 60_000,
    ],
    ids=["head", "interim", "chunks", "chunk line", "body"],
)
def test_answer_in_any_pieces_costs_little(data: bytes) -> None:
    """A byte at a time it is read once, not once for each byte."""
    spent = seconds(Opening(TARGET), (data[index : index + 1] for index in range(len(data))))
    assert spent < 1


def test_body_is_the_same_in_any_pieces() -> None:
    rng = random.Random(7)
    for _ in range(200):
        body = rng.randbytes(rng.choice([0, 1, 5, 300, 2 * MAX_BODY_SIZE]))
        chunks, pos = b"", 0
        while pos < len(body):
            size = rng.randint(1, len(body))
            piece, pos = body[pos : pos + size], pos + size
            chunks += b"%x;a=b\r\n%b\r\n" % (len(piece), piece)
        heads = {
            b"Transfer-Encoding: chunked\r\n\r\n": chunks + b"0\r\n\r\n",
            b"Content-Length: %d\r\n\r\n" % len(body): body,
            b"\r\n": body,
        }
        for head, coded in heads.items():
            opening, response = Opening(TARGET), None
            data = b"HTTP/1.1 403 No\r\n" + head + coded
            while data and response is None:
                size = rng.choice([1, 2, 7, 1000, 65_536])
                response, data = opening.feed(data[:size]), data[size:]
            response = response or opening.feed(b"")
            assert response is not None
            assert response.body == body[:MAX_BODY_SIZE]


def test_answer_has_so_many_headers_and_no_more() -> None:
    for count, is_fine in ((MAX_HEADERS - 3, True), (MAX_HEADERS - 2, False)):
        opening = Opening(TARGET)
        data = answer(opening)[:-2] + b"X: a\r\n" * count + b"\r\n"
        if is_fine:
            assert agree(opening, data) == (None, None)
        else:
            with pytest.raises(HandshakeError, match="more than 256 headers"):
                opening.feed(data)


@pytest.mark.parametrize(
    "lines",
    [
        b"403 \x1b[2J" + b"x" * 1000,
        b"403 " + b"x" * 1000,
        b"101 a\r\nUpgrade: \x1b[2J",
        b"101 a\r\n" + b"\x9b\r" * 500,
        b"301 \x85\r\nLocation: " + b"\x1b" * 1000,
        b"401 a\r\nWWW-Authenticate: \x7f" + b"a" * 1000,
    ],
)
def test_what_is_shown_of_an_answer_is_short_and_escaped(lines: bytes) -> None:
    opening = Opening(TARGET)
    with pytest.raises(HandshakeError) as caught:
        agree(opening, b"HTTP/1.1 " + lines + b"\r\nContent-Length: 0\r\n\r\n")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "value",
    ["\x9b[2J" * 9, "a" * 9000, "permessage-deflate; " + "a" * 8000, 'a; a="' + "\\a" * 4000],
)
def test_what_is_shown_of_extensions_is_short_and_escaped(value: str) -> None:
    opening = Opening(TARGET)
    with pytest.raises(HandshakeError) as caught:
        agree(opening, answer(opening, sec_websocket_extensions=value))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_header_lines_are_checked_and_cookies_joined() -> None:
    lines = header_lines({"X-A": " a ", "Cookie": "a=1"}, {"b": "2", "c": '"3"'})
    assert lines == (("X-A", "a"), ("Cookie", 'a=1; b=2; c="3"'))
    assert header_lines([("A", "1"), ("A", "2")], {}) == (("A", "1"), ("A", "2"))


@pytest.mark.parametrize(
    ("headers", "cookies"),
    [
        ({"X": "a\r\nY: b"}, {}),
        ({"X": "a\nb"}, {}),
        ({"X": "a\0"}, {}),
        ({"X": "€"}, {}),
        ({"X\r\nY": "b"}, {}),
        ({"X Y": "b"}, {}),
        ({"": "b"}, {}),
        ({"X": 1}, {}),
        ({"Upgrade": "h2c"}, {}),
        ({"sec-websocket-key": "a"}, {}),
        ({"Content-Length": "5"}, {}),
        ({}, {"a": "b; c=d"}),
        ({}, {"a": "b\r\n"}),
        ({}, {"a b": "c"}),
    ],
)
def test_headers_stay_in_their_lines(headers: dict[str, str], cookies: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"header|cookie"):
        header_lines(headers, cookies)


def test_response_gives_headers_by_name() -> None:
    response = Response(200, "OK", (("a", "1"), ("b", "2"), ("a", "3")))
    assert (response.get("A"), response.get_all("a"), response.get("c")) == ("1", ["1", "3"], None)
