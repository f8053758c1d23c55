"""gunicorn's settings: heeded as under its own gevent worker, or named at the start."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest
from gunicorn.config import Config

from support import Process
from support.servers import WAYS, read_all, serve_by, write_app
from wsmiddleware.gunicorn import GeventWebSocketWorker

APP = """
    import json

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        texts = {name: value for name, value in environ.items() if isinstance(value, str)}
        return [json.dumps(texts).encode()]
"""

#: What gunicorn itself does with them, for any worker; or this worker as its own gevent one.
HEEDED = set(
    """
    config wsgi_app bind backlog workers worker_class threads worker_connections max_requests
    max_requests_jitter timeout graceful_timeout keepalive limit_request_line limit_request_fields
    limit_request_field_size reload reload_engine reload_extra_files spew check_config print_config
    preload_app reuse_port chdir daemon raw_env pidfile worker_tmp_dir user group umask initgroups
    tmp_upload_dir secure_scheme_headers forwarded_allow_ips accesslog
    disable_redirect_access_to_syslog access_log_format errorlog loglevel capture_output
    logger_class logconfig logconfig_dict logconfig_json syslog_addr syslog syslog_prefix
    syslog_facility enable_stdio_inheritance statsd_host dogstatsd_tags statsd_prefix
    enable_backlog_metric proc_name default_proc_name pythonpath paste on_starting on_reload
    when_ready pre_fork post_fork post_worker_init worker_int worker_abort pre_exec child_exit
    worker_exit nworkers_changed on_exit ssl_context proxy_protocol proxy_allow_ips keyfile certfile
    cert_reqs ca_certs ciphers raw_paste_global_conf permit_obsolete_folding
    permit_unconventional_http_method casefold_http_method forwarder_headers header_map
    control_socket control_socket_mode control_socket_disable
    """.split()  # noqa: SIM905
)

#: Of other kinds of workers: gunicorn's own gevent worker passes them over, too.
ELSEWHERE = set(
    """
    ssl_version suppress_ragged_eofs do_handshake_on_connect asgi_loop asgi_lifespan
    asgi_disconnect_grace_period root_path dirty_apps dirty_workers dirty_timeout dirty_threads
    dirty_graceful_timeout on_dirty_starting dirty_post_fork dirty_worker_init dirty_worker_exit
    """.split()  # noqa: SIM905
)

#: Named at the start, with a value that is not the default.
WARNED: dict[str, Any] = {
    "pre_request": lambda worker, request: None,
    "post_request": lambda worker, request, environ, response: None,
    "protocol": "uwsgi",
    "uwsgi_allow_ips": "10.0.0.1",
    "http_protocols": "h1,h2",
    "http2_cleartext": "prior-knowledge",
    "http2_max_concurrent_streams": 7,
    "http2_initial_window_size": 70000,
    "http2_max_frame_size": 20000,
    "http2_max_header_list_size": 7000,
    "http_parser": "python",
    "permit_unconventional_http_version": True,
    "strip_header_spaces": True,
    "sendfile": True,
    "websocket_max_message_size": 7,
}


class Log:
    """gunicorn's log, of which the warnings are kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str, *args: object) -> None:
        self.lines.append(text % args)


def test_each_setting_is_heeded_or_warned_of() -> None:
    unknown = set(Config().settings) - {*HEEDED, *ELSEWHERE, *WARNED}
    assert not unknown, "look at what gunicorn's gevent worker does with it"


@pytest.mark.parametrize("name", WARNED)
def test_a_setting_that_is_not_heeded_is_named_at_the_start(name: str) -> None:
    config, log = Config(), Log()
    if name not in config.settings:
        pytest.skip("of another version of gunicorn")
    GeventWebSocketWorker.check_config(config, log)
    assert log.lines == []
    with contextlib.suppress(ImportError):  # h2, which this gunicorn would want
        config.set(name, WARNED[name])
        GeventWebSocketWorker.check_config(config, log)
        assert [line.partition(" ")[0] for line in log.lines] == [name]


@contextlib.contextmanager
def both(folder: Path, options: Sequence[str]) -> Iterator[tuple[Process, Process]]:
    """The application under gunicorn's own gevent worker and under ours."""
    WAYS["gevent"] = ["gunicorn", "-k", "gevent"]
    write_app(folder, APP)
    ways = [serve_by(way, folder, options) for way in ("gevent", "worker")]
    with contextlib.ExitStack() as stack:
        # Both at once, for a start takes long.
        started = [gevent.spawn(stack.enter_context, way) for way in ways]
        gevent.joinall(started, raise_error=True)
        theirs, ours = (each.value for each in started)
        yield theirs, ours
        for process in (theirs, ours):
            process.signal(signal.SIGTERM)
    del WAYS["gevent"]


#: Of the environ: what differs between two servers, or two workers, by nature.
OWN = ("SERVER_SOFTWARE", "GATEWAY_INTERFACE", "SERVER_PORT", "REMOTE_PORT")


def ask(process: Process, data: bytes) -> tuple[bytes, Any]:
    """The status, and the environ's texts where there are any."""
    with process.server.socket() as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    status = head[9:12]
    environ = json.loads(body[body.index(b"{") : body.rindex(b"}") + 1]) if status == b"200" else {}
    is_proxied = "PROXY_PROTOCOL" in environ
    own = OWN[:3] if is_proxied else OWN
    return status, {name: value for name, value in environ.items() if name not in own}


def request(target: str = "/app/page%C3%A9?q=1", *lines: str, method: str = "GET") -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: example.org", "Connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1")


HEADERS = [
    (),
    ("X-Forwarded-Proto: https",),
    ("X-Forwarded-Proto: HTTPS",),
    ("X-Forwarded-Proto: http",),
    ("X-Forwarded-Ssl: on",),
    ("X-Forwarded-Proto: https", "X-Forwarded-Ssl: on"),
    ("X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"),
    ("X-Scheme: s",),
    ("SCRIPT_NAME: /app",),
    ("Script_Name: /app",),
    ("Script-Name: /app",),
    ("SCRIPT_NAME: /elsewhere",),
    ("PATH_INFO: /other",),
    ("REMOTE_USER: root",),
    ("X_Forwarded_For: 1.2.3.4",),
    ("X-Forwarded-For: 5.6.7.8", "X_Forwarded_For: 1.2.3.4"),
]


@pytest.mark.once
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--forwarded-allow-ips", "10.0.0.1"],
        ["--forwarded-allow-ips", "*", "--header-map", "dangerous"],
        ["--header-map", "refuse"],
        ["--header-map", "refuse", "--forwarder-headers", "REMOTE_USER"],
        ["--forwarder-headers", "*"],
        ["--env", "SCRIPT_NAME=/app"],
        ["--casefold-http-method", "--permit-unconventional-http-method"],
    ],
    ids=" ".join,
)
def test_what_a_proxy_says_is_taken_as_by_the_gevent_worker(
    tmp_path: Path, options: list[str]
) -> None:
    with both(tmp_path, options) as (theirs, ours):
        for lines in HEADERS:
            data = request("/app/page%C3%A9?q=1", *lines)
            assert ask(ours, data) == ask(theirs, data), lines
        if "--casefold-http-method" in options:
            data = request(method="get")
            assert ask(ours, data) == ask(theirs, data)


#: What version 2 begins with.
V2 = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, addresses: bytes) -> bytes:
    return V2 + struct.pack(">BBH", command, family, len(addresses)) + addresses


V4 = bytes([1, 2, 3, 4, 5, 6, 7, 8]) + struct.pack(">HH", 1234, 443)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack(">HH", 1234, 443)
PROXY = {
    "none": b"",
    "v1 TCP4": b"PROXY TCP4 1.2.3.4 5.6.7.8 1234 443\r\n",
    "v1 TCP6": b"PROXY TCP6 2001:db8::1 2001:db8::2 1234 443\r\n",
    "v1 wrong family": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "v1 wrong port": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 70000\r\n",
    "v1 too few": b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
    "v2 TCP4": v2(0x21, 0x11, V4),
    "v2 TCP6": v2(0x21, 0x21, V6),
    "v2 with more behind": v2(0x21, 0x11, V4 + b"\x04\0\1x"),
    "v2 too short": v2(0x21, 0x11, V4[:-1]),
    "v2 wrong version": v2(0x11, 0x11, V4),
    "v2 wrong command": v2(0x2F, 0x11, V4),
}


@pytest.mark.once
@pytest.mark.parametrize(
    "options",
    [
        ["--proxy-protocol", "auto"],
        ["--proxy-protocol", "v1"],
        ["--proxy-protocol", "v2"],
        ["--proxy-protocol", "auto", "--proxy-allow-from", "10.0.0.1"],
        [],
    ],
    ids=" ".join,
)
def test_the_proxy_protocol_is_taken_as_by_the_gevent_worker(
    tmp_path: Path, options: list[str]
) -> None:
    with both(tmp_path, options) as (theirs, ours):
        for name, header in PROXY.items():
            expected = ask(theirs, header + request())
            if name.startswith("v2") and expected[0] == b"500":
                expected = (b"400", {})  # the peer's mistake, which gunicorn takes for its own
            assert ask(ours, header + request()) == expected, name


@pytest.mark.once
def test_the_proxy_protocol_may_name_nobody_and_come_in_pieces(tmp_path: Path) -> None:
    write_app(tmp_path, APP)
    with serve_by("worker", tmp_path, ["--proxy-protocol", "auto"]) as process:
        # Where gunicorn's own worker refuses, or puts None into the environ.
        for header in (b"PROXY UNKNOWN\r\n", v2(0x20, 0, b""), v2(0x21, 0x31, b"\0" * 216)):
            status, environ = ask(process, header + request())
            assert (status, environ["REMOTE_ADDR"]) == (b"200", "127.0.0.1")
        whole = PROXY["v2 TCP6"] + request()
        for header, address in ((PROXY["v2 TCP6"], "2001:db8::1"), (b"", "127.0.0.1")):
            data = header + request(method="PROPFIND")
            with process.server.socket() as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in data[:40]:
                    sock.sendall(bytes([byte]))
                sock.sendall(data[40:])
                answer = read_all(sock)
            assert f'"REMOTE_ADDR": "{address}"'.encode() in answer
        # Both requests of a connection are that client's, and the WebSocket too.
        with process.server.socket() as sock:
            sock.sendall(whole.replace(b"Connection: close\r\n", b"") + request())
            assert read_all(sock).count(b'"REMOTE_ADDR": "2001:db8::1"') == 2


@pytest.mark.once
def test_limits_of_the_head_are_those_of_the_gevent_worker(tmp_path: Path) -> None:
    options = ["--limit-request-line", "100", "--limit-request-fields", "10"]
    options += ["--limit-request-field_size", "200"]
    with both(tmp_path, options) as (theirs, ours):
        for data in (
            request("/" + "x" * 80),
            request("/" + "x" * 100),
            request("/", *["X: y"] * 8),
            request("/", *["X: y"] * 9),
            request("/", "X: " + "y" * 190),
            request("/", "X: " + "y" * 200),
        ):
            assert ask(ours, data)[0] == ask(theirs, data)[0], data
