"""``wsmiddleware connect``, as a process: in pipes, and in a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import gevent
import gevent.os
import pytest
from websockets.sync.server import ServerConnection

from support import PATIENCE, wait_until
from support.clients import accept, echo, raw_server, read_request, websockets_server
from support.servers import environment


def greet_and_echo(ws: ServerConnection) -> None:
    ws.send("Welcome")
    echo(ws)


@contextlib.contextmanager
def connecting(
    tmp_path: Path,
    *arguments: str,
    stdin: int = subprocess.PIPE,
    stdout: int = subprocess.PIPE,
    redirections: str = "",
) -> Iterator[subprocess.Popen[bytes]]:
    """The command, on its way; `redirections` are a shell's."""
    command = [sys.executable, "-m", "wsmiddleware", "connect", *arguments]
    with subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command],
        cwd=tmp_path,
        env={**environment(tmp_path), "TERM": "xterm", "COLUMNS": "80"},
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE if stdout == subprocess.PIPE else stdout,
    ) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def connect(
    tmp_path: Path, *arguments: str, text: bytes = b"", redirections: str = ""
) -> tuple[int, bytes, str]:
    """The command to its end: status, standard output, standard error."""
    with connecting(tmp_path, *arguments, redirections=redirections) as popen:
        output, errors = popen.communicate(text, timeout=30)
    return popen.returncode, output, errors.decode()


def test_once_gives_the_answer_behind_the_greeting(tmp_path: Path) -> None:
    with websockets_server(greet_and_echo) as url:
        status, output, errors = connect(tmp_path, url, "--once", text=b"hi\n")
    assert (status, output) == (0, b"Welcome\nhi\n")
    time = r"\d\d:\d\d:\d\d\.\d\d\d"
    assert re.search(rf"^\* {time} connected to {url}$", errors, re.MULTILINE)
    assert re.search(rf"^< {time} text 7 B\n> {time} text 2 B\n< {time} text 2 B$", errors, re.M)


def test_lines_of_a_pipe_are_messages(tmp_path: Path) -> None:
    def echo_four(ws: ServerConnection) -> None:
        for _ in range(4):
            ws.send(ws.recv())

    with websockets_server(echo_four) as url:  # which then closes: nothing has to be waited for
        status, output, _ = connect(
            tmp_path, url, "--linger", "10", text="eins\r\nzwei\n\nfünf".encode()
        )
    assert (status, output.decode()) == (0, "eins\nzwei\n\nfünf\n")


def test_answers_that_do_not_come_are_waited_for_as_long_as_was_asked(tmp_path: Path) -> None:
    with websockets_server(list) as url:  # which says nothing
        status, output, errors = connect(tmp_path, url, "--linger", "0.1", text=b"hi\n")
    assert (status, output) == (0, b"")
    assert "closed by the server" not in errors


def test_pipe_as_a_whole_is_one_binary_message(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    with websockets_server(echo) as url:
        status, output, errors = connect(tmp_path, url, "--once", "--binary", text=data)
    assert (status, output) == (0, data)
    assert "binary 256000 B" in errors


def test_without_input_it_listens_until_the_server_closes(tmp_path: Path) -> None:
    def tell(ws: ServerConnection) -> None:
        ws.send("one")
        gevent.sleep(0.1)
        ws.send("two")

    with websockets_server(tell) as url:
        status, output, errors = connect(tmp_path, url, "--linger", "0")
    assert (status, output) == (0, b"one\ntwo\n")
    assert "closed by the server with 1000 NORMAL_CLOSURE" in errors


def test_headers_and_subprotocols_are_sent(tmp_path: Path) -> None:
    def tell(ws: ServerConnection) -> None:
        assert ws.request is not None
        ws.send(ws.request.headers["X-Token"] + ws.request.headers["Origin"])

    arguments = ["--header", "X-Token: a: b", "-H", "Origin:http://c", "--subprotocol", "v1"]
    with websockets_server(tell, subprotocols=["v1"]) as url:
        status, output, errors = connect(tmp_path, url, *arguments)
    assert (status, output) == (0, b"a: bhttp://c\n")
    assert "subprotocol v1" in errors


def test_pings_show_their_round_trip(tmp_path: Path) -> None:
    def answer_three(sock: socket.socket) -> None:  # one that tells nothing, two that do
        accept(sock)
        with sock.makefile("rb") as stream:
            for _ in range(3):
                head = stream.read(6)
                assert (head[0], head[1]) == (0x89, 0x80), head  # an empty ping, masked
                sock.sendall(b"\x8a\x00")
            sock.sendall(b"\x88\x02\x03\xe8")
            stream.read()  # to the end: what nobody has read would make the close a reset

    with raw_server(answer_three) as url:
        status, _, errors = connect(tmp_path, url, "--ping", "0.1")
    assert status == 0
    assert len(re.findall(r"pong \d+\.\d ms", errors)) >= 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "URL"),
        (["http://host/"], "ws or wss"),
        (["ws://host/#a"], "fragment"),
        (["ws://host/", "--header", "no colon"], "--header"),
        (["ws://host/", "--header", "A: b\nC: d"], "header A"),
        (["ws://host/", "--subprotocol", "a b"], "subprotocols"),
        (["ws://host/", "--loud"], "--loud"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    status, output, errors = connect(tmp_path, *arguments)
    assert (status, output) == (2, b"")
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_no_connection_is_status_1(tmp_path: Path) -> None:
    status, _, errors = connect(tmp_path, "ws://127.0.0.1:1/")
    assert (status, len(errors.splitlines())) == (1, 1)
    assert "refused" in errors


def test_input_that_is_not_utf8_is_status_2(tmp_path: Path) -> None:
    with websockets_server(echo) as url:
        status, _, errors = connect(tmp_path, url, text=b"\xff\n")
    assert status == 2
    assert "utf-8" in errors


@pytest.mark.parametrize("frame", [b"", b"\x88\x02\x03\xf3", b"\x83\x00", b"\x88\x02\x0f\xa0"])
def test_connection_that_ends_badly_is_status_3(tmp_path: Path, frame: bytes) -> None:
    with raw_server(lambda sock: accept(sock, frame)) as url:
        status, _, errors = connect(tmp_path, url)
    assert status == 3
    assert "closed by the server" in errors


def test_once_without_an_answer_is_status_3(tmp_path: Path) -> None:
    def leave(ws: ServerConnection) -> None:
        ws.recv()

    with websockets_server(leave) as url:
        assert connect(tmp_path, url, "--once", text=b"hi\n")[0] == 3


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_signal_closes_properly(tmp_path: Path, number: signal.Signals, status: int) -> None:
    codes: list[int | None] = []

    def keep(ws: ServerConnection) -> None:
        ws.send("ready")
        assert list(ws) == []
        codes.append(ws.close_code)

    with websockets_server(keep) as url, connecting(tmp_path, url) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline() == b"ready\n"
        popen.send_signal(number)
        assert popen.wait(PATIENCE) == status
        wait_until(lambda: codes == [1000])


def test_output_that_nobody_reads_ends_it(tmp_path: Path) -> None:
    def talk(ws: ServerConnection) -> None:
        while True:
            ws.send("x" * 1000)
            gevent.sleep(0.001)

    with websockets_server(talk) as url, connecting(tmp_path, url) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        popen.stdout.close()
        assert popen.wait(PATIENCE) == 0


def test_output_that_cannot_be_written_is_status_3(tmp_path: Path) -> None:
    with websockets_server(echo) as url:
        status, _, errors = connect(
            tmp_path, url, "--once", text=b"hi\n", redirections=">/dev/full"
        )
    assert status == 3
    assert "the output cannot be written: No space left on device" in errors.splitlines()[-1]


@pytest.mark.parametrize("redirections", [">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_standard_stream_is_as_the_null_device(tmp_path: Path, redirections: str) -> None:
    came: list[str | bytes] = []

    def greet(ws: ServerConnection) -> None:
        ws.send("Welcome")
        if "<" not in redirections:
            came.append(ws.recv())

    with websockets_server(greet) as url:
        status, output, errors = connect(tmp_path, url, text=b"hi\n", redirections=redirections)
    assert (status, output) == (0, b"" if ">" in redirections else b"Welcome\n")
    assert came == ([] if "<" in redirections else ["hi"])
    assert "Traceback" not in errors


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self._context = connecting(tmp_path, *arguments, stdin=slave, stdout=slave)
        self.popen = self._context.__enter__()
        self.output = ""
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        gevent.os.make_nonblocking(self.master)
        with contextlib.suppress(OSError):  # EIO, once the other side has gone
            while piece := gevent.os.nb_read(self.master, 4096):
                self.output += piece.decode()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def shows(self, pattern: str) -> None:
        """Returns once it has written what matches."""
        wait_until(lambda: re.search(pattern, self.output), lambda: f"{pattern}: {self.output!r}")

    def close(self) -> None:
        self._context.__exit__(None, None, None)
        self._reader.kill()
        os.close(self.slave)
        os.close(self.master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with websockets_server(greet_and_echo) as url:
        terminal = Terminal(tmp_path, url)
        try:
            terminal.shows("Welcome")
            yield terminal
        finally:
            terminal.close()


def test_terminal_has_a_prompt_and_a_history(terminal: Terminal) -> None:
    terminal.shows(r"< \d\d:\d\d:\d\d\.\d{3} text 7 B  Welcome\r\n> ")
    terminal.type("hello\n")
    terminal.shows(r"text 5 B  hello\r\n> ")
    terminal.type("\x1b[A\n")  # the arrow up
    wait_until(lambda: terminal.output.count("text 5 B  hello") == 2)
    terminal.type("\x04")
    assert terminal.popen.wait(PATIENCE) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_ctrl_c_gives_the_terminal_back(terminal: Terminal) -> None:
    terminal.type("half a li")
    terminal.shows("half a li")
    terminal.popen.send_signal(signal.SIGINT)
    assert terminal.popen.wait(PATIENCE) == 130
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_terminal_obeys_no_message(tmp_path: Path) -> None:
    def attack(sock: socket.socket) -> None:
        accept(sock, b"\x81\x06\x1b[2J\r\n\x82\x02\x1b\x07\x88\x02\x03\xe8")

    with raw_server(attack) as url:
        terminal = Terminal(tmp_path, url)
        try:
            terminal.shows(re.escape("text 6 B  \\x1b[2J\\r\\n"))
            terminal.shows("binary 2 B  1b 07")
            assert terminal.popen.wait(PATIENCE) == 0
        finally:
            terminal.close()
    assert "\x1b[2J" not in terminal.output


def test_the_terminal_shows_nothing_of_a_server_as_it_came(tmp_path: Path) -> None:
    def close(ws: ServerConnection) -> None:
        ws.close(4000, "\x1b[2J\r\n\0\x9b\u202eforged")

    with websockets_server(close) as url:
        status, _, errors = connect(tmp_path, url)
    assert status == 3
    assert all(line.isprintable() for line in errors.split("\n")), ascii(errors)
    assert "4000" in errors

    def refuse(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 404 \x1b[2J\x9b\r\nContent-Length: 4\r\n\r\n\x1b[2J")

    with raw_server(refuse) as url:
        status, _, errors = connect(tmp_path, url)
    assert status == 1
    assert all(line.isprintable() for line in errors.split("\n")), ascii(errors)
