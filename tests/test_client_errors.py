"""How the client's connections fail: before they are open, and afterwards."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest

from support import PATIENCE, Server, wait_until
from support.clients import (
    Recorder,
    accept,
    echo,
    raw_server,
    read_request,
    serve_echo,
    websockets_server,
)
from support.servers import Tls
from wsmiddleware import (
    ConnectionClosed,
    HandshakeError,
    SlowConsumerError,
    create_websocket_client,
)

CLOSE_1000 = b"\x88\x02\x03\xe8"


@pytest.fixture
def ours(serve: Callable[..., Server]) -> str:
    return serve_echo(serve)


# -- connections that do not come about -----------------------------------------------------------


def refused(url: str, **options: Any) -> HandshakeError:
    """The error of a connection that must fail; and that nothing but it is told."""
    listener = Recorder()
    with pytest.raises(HandshakeError) as caught:
        create_websocket_client(url, listener, **options)
    assert listener.events == []
    return caught.value


def refused_in_time(url: str, words: str) -> tuple[str, float]:
    """`refused` by a short time-out; by a longer one where it did not get as far as `words`.

    Gives the error's text, and the time-out in seconds.
    """
    for seconds in (0.1, 1, 5):
        text = str(refused(url, connect_timeout=seconds))
        if words in text:
            break
    return text, seconds


def test_refused_connection_raises() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = refused(f"ws://127.0.0.1:{port}/?token=secret")
    assert f"127.0.0.1 port {port} failed: Connection refused" in str(error)
    assert "secret" not in str(error)
    assert isinstance(error.__cause__, ConnectionRefusedError)


def test_unknown_host_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*args: Any, **options: Any) -> Any:  # no matter how long a real answer takes
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(gevent.socket, "getaddrinfo", resolve)
    error = refused("ws://nowhere.invalid/")
    assert "DNS" in str(error)
    assert isinstance(error.__cause__, socket.gaierror)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_server_that_says_nothing_is_given_up(scheme: str) -> None:
    def wait(sock: socket.socket) -> None:
        while sock.recv(1000):
            pass

    step = "TLS" if scheme == "wss" else "opening handshake"
    with raw_server(wait) as url:
        text, seconds = refused_in_time(url.replace("ws:", f"{scheme}:"), step)
    assert f"{seconds} s (connect_timeout)" in text
    assert step in text


def test_server_that_drips_is_given_up() -> None:
    def drip(sock: socket.socket) -> None:
        read_request(sock)
        for byte in b"HTTP/1.1 101 Switching Protocols\r\n" * 100:
            sock.sendall(bytes([byte]))
            gevent.sleep(0.01)

    with raw_server(drip) as url:
        assert "connect_timeout" in str(refused(url, connect_timeout=0.2))


def test_line_of_blanks_does_not_outlast_connect_timeout() -> None:
    def answer(sock: socket.socket) -> None:
        read_request(sock)
        blanks = b"X: a" + b" \t" * 32_000 + b"a"
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + blanks + b"\r\n\r\n")

    started = time.monotonic()
    with raw_server(answer) as url:
        assert "Upgrade is missing" in str(refused(url))
    assert time.monotonic() - started < 5  # connect_timeout, as it is without one


@pytest.mark.parametrize("status", [200, 301, 401, 403, 404, 426, 500, 503])
def test_refusal_names_status_and_body(status: int) -> None:
    def refuse(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(f"HTTP/1.1 {status} Why\r\nContent-Length: 7\r\n\r\nbecause".encode())

    with raw_server(refuse) as url:
        error = refused(url)
    assert f"{status} Why: because" in str(error)
    response: Any = error.response
    assert (response.status, response.body) == (status, b"because")


def test_refusal_without_an_end_is_told_in_time() -> None:
    def refuse(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 403 No\r\n\r\nbecau")
        sock.recv(1)

    with raw_server(refuse) as url:
        assert "403 No: becau" in refused_in_time(url, "403")[0]


def test_redirect_is_not_followed_but_named() -> None:
    def redirect(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 307 There\r\nLocation: ws://there/\r\nContent-Length: 0\r\n\r\n")

    with raw_server(redirect) as url:
        assert "redirect to 'ws://there/'" in str(refused(url))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "without an answer"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP"),
        (b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "Accept"),
        (b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
         b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n", "does not answer our key"),
    ],
)  # fmt: skip
def test_wrong_answer_raises(answer: bytes, words: str) -> None:
    def handle(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer)

    with raw_server(handle) as url:
        assert words in str(refused(url))


def test_reset_during_the_handshake_raises() -> None:
    def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with raw_server(reset) as url:
        assert refused(url).response is None


# -- TLS and IPv6 ---------------------------------------------------------------------------------


def test_wss_is_verified(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    with websockets_server(echo, ssl=tls.server) as url:
        listener = Recorder()
        with create_websocket_client(url, listener, ssl_context=tls.client) as ws:
            ws.send_binary(bytes(2**20))
            listener.wait_for("binary", bytes(2**20))
        error = refused(url)
        assert "certificate not accepted" in str(error)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)


def test_host_name_of_the_certificate_is_checked(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    with websockets_server(echo, ssl=tls.server) as url, pytest.MonkeyPatch.context() as patch:
        real = gevent.socket.getaddrinfo

        def resolve(host: str, *args: Any, **options: Any) -> Any:
            return real("127.0.0.1", *args, **options)

        patch.setattr(gevent.socket, "getaddrinfo", resolve)
        wrong = url.replace("127.0.0.1", "other.example")
        assert "ostname mismatch" in str(refused(wrong, ssl_context=tls.client))


def test_ipv6_is_reached() -> None:
    try:
        probe = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    probe.close()
    requests: list[bytes] = []
    with raw_server(lambda sock: requests.append(accept(sock, CLOSE_1000)), host="::1") as url:
        assert create_websocket_client(url, object()).wait(PATIENCE)
    assert b"\r\nHost: " + url[5:-1].encode() + b"\r\n" in requests[0]


def test_next_address_is_tried(monkeypatch: pytest.MonkeyPatch, ours: str) -> None:
    real = gevent.socket.getaddrinfo

    def resolve(host: str, port: int, **options: Any) -> Any:
        return real("127.0.0.1", 1, **options) + real("127.0.0.1", port, **options)

    monkeypatch.setattr(gevent.socket, "getaddrinfo", resolve)
    create_websocket_client(ours, object()).disconnect()


# -- errors, each by its cause --------------------------------------------------------------------


def error_of(behind: bytes, **options: Any) -> tuple[Recorder, Any]:
    """What the listener gets from a server that sends this behind its 101, and ends."""
    listener = Recorder()
    with raw_server(lambda sock: accept(sock, behind)) as url:
        ws = create_websocket_client(url, listener, **options)
        assert ws.wait(PATIENCE)
    assert ws.close_code == 1006
    return listener, listener.last("error")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x83\x00", 1002),
        (b"\x81\x80\0\0\0\0", 1002),
        (b"\x88\x01\x03", 1002),
        (b"\xc1\x01x", 1002),
        (b"\x82\x7f\0\0\0\0\1\0\0\0", 1009),
    ],
)
def test_violation_of_the_protocol_is_a_frame_error(frame: bytes, code: int) -> None:
    listener, (_, kind, cause, data) = error_of(b"\x81\x01x" + frame)
    assert listener.names() == ["open", "text", "error frame", "close"]
    assert (kind, cause.code, data) == ("frame", code, None)


def test_text_that_is_not_utf8_is_a_message_error_with_the_data() -> None:
    listener, (_, kind, cause, data) = error_of(b"\x81\x03a\xffb")
    assert listener.names() == ["open", "error message", "close"]
    assert (kind, cause.code, data) == ("message", 1007, b"a\xffb")


def test_end_without_a_close_frame_is_unexpected() -> None:
    listener, (_, _kind, cause, data) = error_of(b"\x81\x05hel")
    assert listener.names() == ["open", "error unexpected", "close"]
    assert isinstance(cause, ConnectionClosed)
    assert (cause.code, data) == (1006, None)


def test_reset_is_unexpected() -> None:
    def reset(sock: socket.socket) -> None:
        accept(sock)
        sock.recv(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    listener = Recorder()
    with raw_server(reset) as url:
        ws = create_websocket_client(url, listener)
        ws.send_text("x")
        assert ws.wait(PATIENCE)
    assert listener.names() == ["open", "error unexpected", "close"]


def test_exception_of_a_callback_is_told_and_the_connection_stays(ours: str) -> None:
    class Failing(Recorder):
        def on_message(self, message: str) -> None:
            super().on_message(message)
            raise ZeroDivisionError(message)

    listener = Failing()
    with create_websocket_client(ours, listener) as ws:
        for text in ("one", "two"):
            ws.send_text(text)
            listener.wait_for("text", text)
        assert ws.is_open()
    assert listener.names() == [
        "open", "text", "error callback", "text", "error callback", "close",
    ]  # fmt: skip
    assert isinstance(listener.last("error")[2], ZeroDivisionError)


def test_exception_without_on_error_is_logged(ours: str, caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def on_open(self) -> None:
            raise ZeroDivisionError("in on_open")

    create_websocket_client(ours, Failing()).disconnect()
    assert "ZeroDivisionError: in on_open" in caplog.text


def test_exception_in_on_error_goes_no_further(ours: str, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        def on_open(self) -> None:
            raise ZeroDivisionError("first")

        def on_error(self, type: str, cause: BaseException, data: Any = None) -> None:
            raise KeyError("second")

    listener = Failing()
    with create_websocket_client(ours, listener) as ws:
        ws.send_text("x")
        listener.wait_for("text", "x")
    assert "on_error raised KeyError" in caplog.text


def test_on_error_may_leave_data_out_or_need_it() -> None:
    class Two(Recorder):
        def on_error(self, type: str, cause: BaseException) -> None:  # type: ignore[override]
            self.events.append(("two", type))

    class Three(Recorder):
        def on_error(self, type: str, cause: BaseException, data: Any) -> None:  # type: ignore[override]
            self.events.append(("three", type, data))

    for listener in (Two(), Three()):
        with raw_server(lambda sock: accept(sock, b"\x81\x01\xff")) as url:
            assert create_websocket_client(url, listener).wait(PATIENCE)
    assert ("three", "message", b"\xff") in listener.events


def test_server_that_answers_no_ping_is_a_general_error() -> None:
    def sleep(sock: socket.socket) -> None:
        accept(sock)
        while sock.recv(1000):
            pass

    listener = Recorder()
    with raw_server(sleep) as url:
        ws = create_websocket_client(url, listener, ping_interval=0.1, ping_timeout=0.1)
        assert ws.wait(PATIENCE)
    assert listener.names() == ["open", "error general", "close"]
    assert "ping" in str(listener.last("error")[2])


def test_server_that_takes_nothing_is_a_slow_consumer() -> None:
    done = gevent.event.Event()

    def stop(sock: socket.socket) -> None:
        accept(sock)
        done.wait(PATIENCE)

    listener = Recorder()
    with raw_server(stop) as url:
        ws = create_websocket_client(
            url, listener, send_timeout=0.1, send_queue_size=1000, close_timeout=0.1
        )
        with pytest.raises(SlowConsumerError):
            for _ in range(100):
                ws.send_binary(bytes(2**20))
        assert ws.wait(PATIENCE)
        done.set()
    assert listener.names() == ["open", "error general", "close"]
    assert isinstance(listener.last("error")[2], SlowConsumerError)


def test_sockets_are_closed_on_every_way(ours: str) -> None:
    before = count_descriptors()
    create_websocket_client(ours, object()).disconnect()
    refused("ws://127.0.0.1:1/")
    refused(ours + "x")
    error_of(b"\x83\x00")
    wait_until(lambda: count_descriptors() <= before)


def count_descriptors() -> int:
    count = 0
    for number in range(200):
        try:
            socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM).close()
        except OSError as exc:
            if exc.errno == errno.EBADF:
                continue
        count += 1
    return count


# -- a server that ends the connection and leaves TCP open ----------------------------------------

ENDINGS = {
    "close": (CLOSE_1000, ["close"], 1000),
    "with a reason": (b"\x88\x05\x0f\xa0bye", ["close"], 4000),
    "empty": (b"\x88\x00", ["close"], 1005),
    "invalid code": (b"\x88\x02\x03\xe7", ["error frame", "close"], 1006),
    "half a code": (b"\x88\x01\x03", ["error frame", "close"], 1006),
    "invalid reason": (b"\x88\x03\x03\xe8\xff", ["error message", "close"], 1006),
    "masked": (b"\x81\x80\0\0\0\0", ["error frame", "close"], 1006),
    "invalid text": (b"\x81\x01\xff", ["error message", "close"], 1006),
    "behind a message": (b"\x81\x02hi" + CLOSE_1000, ["text", "close"], 1000),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("is_read", [True, False])
def test_end_is_told_when_it_is_known_and_not_when_tcp_ends(ending: str, is_read: bool) -> None:
    wire, names, code = ENDINGS[ending]
    listener, leave = Recorder(), gevent.event.Event()

    def end(sock: socket.socket) -> None:
        accept(sock)
        if not is_read:
            # More waits than the kernel takes: even our close frame does not get away.
            sock.recv(1)
        sock.sendall(wire)
        while is_read and sock.recv(65536):
            pass
        leave.wait(PATIENCE)

    with raw_server(end) as url:
        ws = create_websocket_client(url, listener, close_timeout=60, send_queue_size=2**26)
        if not is_read:
            ws.send_binary(bytes(2**25))
        started = time.monotonic()
        listener.wait_for("close")
        assert ws.wait(5)
        ws.disconnect()
        assert time.monotonic() - started < 5
        leave.set()
    assert listener.names() == ["open", *names]
    assert ws.close_code == code


def test_next_connection_does_not_wait_for_tcp_to_end() -> None:
    listener, leave = Recorder(), gevent.event.Event()

    def end(sock: socket.socket) -> None:
        accept(sock, CLOSE_1000)
        leave.wait(PATIENCE)

    with raw_server(end) as url:
        ws = create_websocket_client(
            url, listener, close_timeout=60, reconnect=True, reconnect_delay=0.01
        )
        listener.wait_for("open", times=3)
        leave.set()
        ws.disconnect()
