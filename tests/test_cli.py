"""The command line, as processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import gevent
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from websockets.exceptions import ConnectionClosed

from support import Process, running, wait_until
from support.apps import BROKEN_LISTENERS
from support.servers import Tls, environment, serve_by, write_app

ECHO = """
    class Echo(WebSocketListener):
        def on_message(self, wsclient, message):
            return message
"""

APP = """
    from wsmiddleware import WebSocketMiddleware

    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"page"]

    app = WebSocketMiddleware(page)
"""

MUTE = """\
class Mute(Exception):
    def __str__(self): return None
raise Mute
"""

LAZY = """\
def __getattr__(name): 1 / 0
class Made:
    @property
    def app(self): raise RuntimeError("not made")
made = Made()
"""


FACTORY = """\
def create_app(name, *, text=""):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [f"{name} {text}".encode()]
    return app
def with_defaults(config=None, debug=False):
    return create_app("default")
def fails():
    return 1 / 0
def nothing():
    pass
class namespace:
    create_app = staticmethod(create_app)
"""


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m wsmiddleware …`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "wsmiddleware", *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=30,
    )


def has_said(process: Process, text: str, times: int = 1) -> None:
    """Returns once the process has printed `text`."""
    wait_until(
        lambda: process.output.count(text) >= times,
        lambda: f"{text!r} is not {times} times in:\n{process.output}",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], ["APP"]),
        (["run", "app"], ["'app'", "module:callable"]),
        (["run", ":app"], ["':app'", "module:callable"]),
        (["run", "app.py:app"], ["app.py:app", "app:app"]),
        (["run", "nowhere:app"], ["nowhere:app", "No module named 'nowhere'"]),
        (["run", "fails:app"], ["fails:app", "ZeroDivisionError: division by zero", "line 1"]),
        (["run", "script:app"], ["script:app", "SystemExit: 3"]),
        (["run", "waits:app"], ["waits:app", "Timeout: 3 seconds", "waits.py, line 2"]),
        (["run", "mute:app"], ["mute:app", "Mute: <exception str() failed>", "mute.py, line 3"]),
        (["run", "broken:app"], ["broken:app", "SyntaxError", "broken.py, line 1"]),
        (["run", "plain:nothing"], ["plain has no 'nothing'"]),
        (["run", "plain:number"], ["plain:number", "int"]),
        (["run", "lazy:app"], ["lazy:app", "ZeroDivisionError", "lazy.py, line 1"]),
        (["run", "lazy:made.app"], ["lazy:made.app", "RuntimeError: not made", "lazy.py, line 4"]),
        (["run", "factory:create_app"], ["factory:create_app", "'factory:create_app()'"]),
        (["run", "factory:with_defaults"], ["'factory:with_defaults()'"]),
        (["run", "factory:create_app()"], ["missing 1 required positional argument: 'name'"]),
        (["run", "factory:create_app('x', 1, 2)"], ["TypeError", "1 positional argument but 3"]),
        (["run", "factory:create_app(open)"], ["literals"]),
        (["run", "factory:create_app(**{})"], ["literals"]),
        (["run", "factory:create_app('x').app"], ["literals"]),
        (["run", "factory:create_app('x'"], ["literals"]),
        (["run", "factory:fails()"], ["ZeroDivisionError", "factory.py, line 9"]),
        (["run", "factory:nothing()"], ["NoneType"]),
        (["check", "factory:create_app"], ["'factory:create_app()'"]),
        (["run", "plain:app", "--loud"], ["--loud"]),
        (["run", "plain:app", "--port", "99999"], ["--port", "99999"]),
        (["run", "plain:app", "--host", "256.0.0.1"], ["256.0.0.1:8000"]),
        (["run", "plain:app", "--certfile", "nowhere.pem"], ["--certfile nowhere.pem", "no such"]),
        (["run", "plain:app", "--certfile", "plain.py"], ["plain.py", "certificate", "PEM"]),
        (["run", "plain:app", "--keyfile", "plain.py"], ["--keyfile", "--certfile"]),
        (["run", "plain:app", "--reload", "--certfile", "plain.py"], ["plain.py", "certificate"]),
        (["no-such-command"], ["no-such-command"]),
        (["check", "nowhere:app"], ["nowhere:app"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "plain.py").write_text("number = 1\ndef app(*_): pass\n")
    (tmp_path / "fails.py").write_text("1 / 0\n")
    (tmp_path / "script.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "waits.py").write_text("import gevent\nraise gevent.Timeout(3)\n")
    (tmp_path / "mute.py").write_text(MUTE)
    (tmp_path / "lazy.py").write_text(LAZY)
    (tmp_path / "broken.py").write_text("def app(\n")
    (tmp_path / "factory.py").write_text(FACTORY)
    done = call(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


def test_ctrl_c_while_the_application_is_imported_ends_it(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("raise KeyboardInterrupt\n")
    done = call(tmp_path, "run", "plain:app")
    assert (done.returncode, done.stderr.strip()) == (130, "")


def test_a_port_in_use_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def app(*_): pass\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options in ([], ["--reload"]):
            done = call(tmp_path, "run", "plain:app", "--port", port, *options)
            assert done.returncode == 2
            assert f"127.0.0.1:{port}" in done.stderr
            assert "ddress already in use" in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def app(*_): pass\n")
    (tmp_path / "other").mkdir()
    one, other = Tls(tmp_path), Tls(tmp_path / "other")
    files = ["--certfile", str(one.certfile), "--keyfile", str(other.keyfile)]
    done = call(tmp_path, "run", "plain:app", *files)
    assert done.returncode == 2
    assert str(other.keyfile) in done.stderr
    assert "MISMATCH" in done.stderr


def test_a_key_that_is_encrypted_or_missing_is_not_called_no_pem(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def app(*_): pass\n")
    tls = Tls(tmp_path)
    key = load_pem_private_key(tls.keyfile.read_bytes(), None)
    encryption = BestAvailableEncryption(b"secret")
    tls.keyfile.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, encryption)
    )
    for files in (["--keyfile", str(tls.keyfile)], []):
        done = call(tmp_path, "run", "plain:app", "--certfile", str(tls.certfile), *files)
        assert done.returncode == 2
        assert "an unencrypted key is missing, or not in PEM format" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("factory:create_app('one', text='two')", "one two"),
        ("factory:create_app(('a', 1))", "('a', 1) "),
        ("factory:namespace.create_app(name=1)", "1 "),
        ("factory:with_defaults()", "default "),
        ("factory:with_defaults(None, debug=True)", "default "),
    ],
)
def test_run_calls_a_factory_with_its_arguments(tmp_path: Path, spec: str, text: str) -> None:
    (tmp_path / "factory.py").write_text(FACTORY)
    with serve_by("run", tmp_path, app=spec) as process:
        assert process.server.get("/").text == text


APPLICATIONS = {
    "function": "def app(environ, start_response): pass",
    "any arguments": "def app(*arguments): pass",
    "class": "class app:\n def __init__(self, environ, start_response): pass",
    "object": "class App:\n def __call__(self, environ, start_response): pass\napp = App()",
    "method": "class App:\n def wsgi(self, environ, start_response): pass\napp = App().wsgi",
    "defaults behind": "def app(environ, start_response, more=None, **others): pass",
    "partial": "import functools\napp = functools.partial(lambda a, b, c: None, 1)",
    "no signature": "app = dict",
}


@pytest.mark.parametrize("kind", APPLICATIONS)
def test_what_may_be_an_application_is_taken_for_no_factory(tmp_path: Path, kind: str) -> None:
    (tmp_path / "plain.py").write_text(APPLICATIONS[kind])
    done = call(tmp_path, "check", "plain:app")
    assert "has no WebSocketMiddleware around it" in done.stderr


def test_version_is_told(tmp_path: Path) -> None:
    done = call(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"wsmiddleware {version('wsmiddleware')}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["check", "-h"]])
def test_help_goes_to_standard_output(tmp_path: Path, arguments: list[str]) -> None:
    done = call(tmp_path, *arguments)
    assert done.returncode == 0
    assert "Usage: wsmiddleware" in done.stdout
    assert done.stderr == ""


def test_run_prints_the_url_of_the_page_and_of_each_channel(tmp_path: Path) -> None:
    rooms = "class Rooms(WebSocketListener):\n    path = '/room/<int:id>'\n"
    write_app(tmp_path, APP, echo=ECHO, rooms=rooms)
    with serve_by("run", tmp_path) as process:
        where = f"127.0.0.1:{process.server.port}"
        has_said(process, f"http://{where}/\n")
        has_said(process, f"ws://{where}/ws/echo\n")
        has_said(process, f"ws://{where}/ws/rooms/room/<int:id>\n")
        assert process.server.get("/").text == "page"


def test_run_patches_before_the_application_is_imported(tmp_path: Path) -> None:
    source = """
        from gevent import monkey

        IS_PATCHED = monkey.is_module_patched("socket") and monkey.is_module_patched("threading")

        def app(environ, start_response):
            start_response("200 OK", [])
            return [str(IS_PATCHED).encode()]
    """
    with serve_by("run", write_app(tmp_path, source)) as process:
        assert process.server.get("/").text == "True"
        assert "Warning" not in process.output


def test_run_serves_tls(tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    files = ["--certfile", str(tls.certfile), "--keyfile", str(tls.keyfile)]
    with serve_by("run", write_app(tmp_path, APP, echo=ECHO), files) as process:
        has_said(process, f"wss://127.0.0.1:{process.server.port}/ws/echo\n")
        with process.server.__class__(process.server.port, tls.client).connect("/ws/echo") as ws:
            ws.send("hello")
            assert ws.recv(timeout=5) == "hello"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_tells_the_clients_and_ends(tmp_path: Path, number: signal.Signals) -> None:
    with (
        serve_by("run", write_app(tmp_path, APP, echo=ECHO)) as process,
        process.server.connect("/ws/echo") as client,
    ):
        process.signal(number)
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(timeout=5)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001
        assert process.wait() == 0
        assert "Traceback" not in process.output


def test_a_thread_that_is_no_daemon_does_not_keep_the_process(tmp_path: Path) -> None:
    source = """
        import threading, time

        def app(environ, start_response):
            threading.Thread(target=time.sleep, args=(1000,)).start()
            start_response("200 OK", [])
            return [b""]
    """
    with serve_by("run", write_app(tmp_path, source)) as process:
        process.server.get("/")
        process.signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    source = """
        import time

        def app(environ, start_response):
            print("inside", flush=True)
            time.sleep(1000)
    """
    with (
        serve_by("run", write_app(tmp_path, source)) as process,
        process.server.socket() as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        has_said(process, "inside\n")
        process.signal(signal.SIGINT)
        wait_until(lambda: is_refused(process))  # then the first has been taken
        process.signal(signal.SIGINT)
        assert process.wait(3) == 130


def test_reload_tells_the_clients_and_serves_the_new_code(tmp_path: Path) -> None:
    write_app(tmp_path, APP, echo=ECHO)
    with serve_by("run", tmp_path, ["--reload"]) as process:
        with process.server.connect("/ws/echo") as client:
            write_app(tmp_path, APP, echo=ECHO.replace("return message", "return message.upper()"))
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(timeout=10)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012
        # The parent holds the port: this waits for the new child, and is not refused.
        with process.server.connect("/ws/echo") as client:
            client.send("hello")
            assert client.recv(timeout=10) == "HELLO"
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_reload_notices_a_new_listener(tmp_path: Path) -> None:
    write_app(tmp_path, APP, echo=ECHO)
    with serve_by("run", tmp_path, ["--reload"]) as process:
        write_app(tmp_path, APP, second=ECHO)
        has_said(process, "/ws/second\n")


def test_reload_waits_when_the_code_is_broken(tmp_path: Path) -> None:
    write_app(tmp_path, APP, echo=ECHO)
    with serve_by("run", tmp_path, ["--reload"]) as process:
        write_app(tmp_path, "import nowhere_yet")
        has_said(process, "No module named 'nowhere_yet'")
        has_said(process, "waiting for a change")
        write_app(tmp_path, "def app(\n")
        has_said(process, "SyntaxError")
        has_said(process, "waiting for a change")
        write_app(tmp_path, APP)
        has_said(process, "/ws/echo\n", 2)
        assert process.server.get("/").text == "page"


def test_reload_waits_when_the_first_start_fails(tmp_path: Path) -> None:
    write_app(tmp_path, "1 / 0\n")
    arguments = ["wsmiddleware", "run", "app:app", "--port", "0", "--reload"]
    ready = r"line (?P<port>1)\)\n.*waiting for a change"  # there is no port yet
    with running(arguments, cwd=tmp_path, env=environment(tmp_path), ready=ready) as process:
        write_app(tmp_path, APP, echo=ECHO)
        has_said(process, "/ws/echo\n")
        process.signal(signal.SIGINT)
        assert process.wait() == 0


PID = """
    import os, time

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/hang":
            print("inside", flush=True)
            time.sleep(1000)
        start_response("200 OK", [])
        return [str(os.getpid()).encode()]
"""


def test_reload_ends_by_the_ctrl_c_that_both_processes_get(tmp_path: Path) -> None:
    with serve_by("run", write_app(tmp_path, PID), ["--reload"]) as process:
        child = int(process.server.get("/").text)
        for pid in (child, process.popen.pid):  # as a terminal does
            os.kill(pid, signal.SIGINT)
        assert process.wait() == 0
        assert "Traceback" not in process.output


def test_reload_ends_at_once_by_a_second_ctrl_c(tmp_path: Path) -> None:
    with (
        serve_by("run", write_app(tmp_path, PID), ["--reload"]) as process,
        process.server.socket() as client,
    ):
        client.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        has_said(process, "inside\n")
        started = time.monotonic()
        while process.popen.poll() is None:
            process.signal(signal.SIGINT)
            gevent.sleep(0.05)
        assert time.monotonic() - started < 3  # the grace period is 5


def test_reload_leaves_no_child_behind(tmp_path: Path) -> None:
    with serve_by("run", write_app(tmp_path, PID), ["--reload"]) as process:
        process.server.get("/")
        process.popen.kill()
        wait_until(lambda: is_refused(process))


def is_refused(process: Process) -> bool:
    """True when nobody listens any more."""
    try:
        with process.server.socket():
            return False
    except ConnectionRefusedError:
        return True


def test_check_prints_each_channel_with_its_class(tmp_path: Path) -> None:
    write_app(tmp_path, APP, echo=ECHO)
    done = call(tmp_path, "check", "app:app")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/ws/echo: Echo (")
    assert "echo.py" in done.stdout


def test_check_without_an_application_takes_the_directory(tmp_path: Path) -> None:
    write_app(tmp_path, APP, echo=ECHO, plain="class Plain(WebSocketListener): pass\n")
    for options in ([], ["--directory", "websockets"]):
        done = call(tmp_path, "check", *options)
        assert done.returncode == 0, done.stderr
        names = [line.partition(" (")[0] for line in done.stdout.splitlines()]
        assert names == ["echo: Echo", "plain: Plain"]
    assert not (tmp_path / "websocket.json").exists()


@pytest.mark.parametrize("arguments", [[], ["app:app"], ["--directory", "websockets"]])
def test_check_shows_every_broken_listener(tmp_path: Path, arguments: list[str]) -> None:
    write_app(tmp_path, APP, echo=ECHO, **BROKEN_LISTENERS)
    done = call(tmp_path, "check", *arguments)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if str(tmp_path / "websockets") in line]
    for name, line in zip(sorted(BROKEN_LISTENERS), lines, strict=True):
        assert f"{name}.py" in line
    assert "Traceback" not in done.stderr


def test_check_shows_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "websocket.json").write_text('{"idleTimeout": "soon"}')
    done = call(tmp_path, "check")
    assert done.returncode == 1
    assert "websocket.json" in done.stderr
    assert "idleTimeout" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["app:app"], ["app:app", "--directory", "websockets"]])
def test_check_shows_wrong_settings_and_broken_listeners_at_once(
    tmp_path: Path, arguments: list[str]
) -> None:
    write_app(tmp_path, APP, echo=ECHO, **BROKEN_LISTENERS)
    (tmp_path / "websocket.json").write_text('{"idleTimeout": "soon", "idleTime": 1}')
    done = call(tmp_path, "check", *arguments)
    assert done.returncode == 1
    files = [f"{name}.py" for name in BROKEN_LISTENERS]
    for words in ('"idleTimeout"', '"idleTime"', *files):
        assert words in done.stderr
    assert "echo: Echo (" in done.stdout
    assert "Traceback" not in done.stderr


GOOD = '{"directory": "websockets"}'


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ('{"idleTimeout": "soon"}', GOOD),
        ('{"idleTimeout": ', GOOD),
        ('{"idleTimeout": "soon"}', None),
        ('{"directory": "elsewhere"}', "elsewhere"),
    ],
    ids=["value", "syntax", "deleted", "directory"],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_reload_waits_for_broken_settings(
    tmp_path: Path, broken: str, mended: str | None, is_first: bool
) -> None:
    app = APP.replace("WebSocketMiddleware(page)", "WebSocketMiddleware(page, config='c/ws.json')")
    (tmp_path / "c").mkdir()
    write_app(tmp_path, app, echo=ECHO)
    (tmp_path / "websockets").rename(tmp_path / "c" / "websockets")
    file = tmp_path / "c" / "ws.json"
    file.write_text(broken if is_first else GOOD)
    arguments = ["wsmiddleware", "run", "app:app", "--port", "0", "--reload"]
    ready = "waiting for a change" if is_first else "/ws/echo\n"
    with running(arguments, cwd=tmp_path, env=environment(tmp_path), ready=ready) as process:
        if not is_first:
            file.write_text(broken)
            has_said(process, "waiting for a change")
        assert "ws.json" in process.output
        if mended is None:
            file.unlink()
        elif mended == "elsewhere":
            (tmp_path / "c" / "websockets").rename(tmp_path / "c" / "elsewhere")
        else:
            file.write_text(mended)
        has_said(process, "/ws/echo\n", 1 if is_first else 2)


def test_reload_waits_for_each_of_several_broken_listeners(tmp_path: Path) -> None:
    write_app(tmp_path, APP, one="def (", two="def (")
    arguments = ["wsmiddleware", "run", "app:app", "--port", "0", "--reload"]
    env = environment(tmp_path)
    with running(arguments, cwd=tmp_path, env=env, ready="waiting for a change") as process:
        for times, name in ((2, "two"), (2, "one")):
            listener = tmp_path / "websockets" / f"{name}.py"  # and nothing beside it
            listener.write_text("import wsmiddleware as w\nclass L(w.WebSocketListener): pass\n")
            has_said(process, "waiting for a change", times)
        has_said(process, "/ws/one\n")
