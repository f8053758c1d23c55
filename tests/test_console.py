"""Output that nobody reads holds nobody up: the queue by itself, and a server with a stuck pipe."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import Server, wait_until
from support.servers import environment, write_app
from wsmiddleware.console import QUEUE_SIZE, QueuedOutput

LOSS = re.compile(rb"wsmiddleware: (\d+) line\(s\) dropped here, which nobody read in time\n")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    os.close(reading)
    # The thread that writes may hold the other end: it ends with the process.


def read_all(fd: int, output: QueuedOutput) -> bytes:
    """What comes until nothing is queued any more."""
    data = b""

    def read() -> bool:
        nonlocal data
        is_empty = output.drain(0)
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(fd, 65536):
                data += piece
        return is_empty

    wait_until(read)
    return data


def test_what_is_written_comes_in_order(pipe: tuple[int, int]) -> None:
    output = QueuedOutput(pipe[1], "<test>")
    with io.TextIOWrapper(output, "utf-8", line_buffering=True) as text:
        for number in range(1000):
            print("line", number, file=text)
        expected = "".join(f"line {number}\n" for number in range(1000)).encode()
        assert read_all(pipe[0], output) == expected


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="a pipe that keeps writes apart")
def test_lines_that_follow_each_other_are_written_together() -> None:
    """A thread that is woken for each line costs more than the line."""
    reading, writing = os.pipe2(os.O_DIRECT)
    output = QueuedOutput(writing, "<test>")
    for number in range(200):
        output.write(b"line %d\n" % number)
        time.sleep(0)  # the thread may run
    pieces: list[bytes] = []
    while b"".join(pieces).count(b"\n") < 200:
        pieces.append(os.read(reading, 65536))  # what one write has written
    os.close(reading)
    assert len(pieces) < 100


def test_what_finds_no_room_is_counted_in_the_next_line(pipe: tuple[int, int]) -> None:
    output = QueuedOutput(pipe[1], "<test>")
    line = b"x" * 999 + b"\n"
    sent = 2 * QUEUE_SIZE // len(line)
    for _ in range(sent):
        assert output.write(line) == len(line)  # returns, although nobody reads
    assert not output.drain(0.01)
    data = read_all(pipe[0], output)
    output.write(b"the next line\n")
    data += read_all(pipe[0], output)
    found = LOSS.findall(data)
    lost = int(found[0])
    assert len(found) == 1
    assert lost > 0
    assert data.count(line) == sent - lost
    assert len(data) < QUEUE_SIZE + 2**18  # and what the pipe itself holds


def test_a_loss_is_told_at_the_end_where_no_line_follows(pipe: tuple[int, int]) -> None:
    output = QueuedOutput(pipe[1], "<test>")
    output.write(b"x" * QUEUE_SIZE)
    output.write(b"lost\n")
    assert LOSS.fullmatch(read_all(pipe[0], output).lstrip(b"x"))


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    output = QueuedOutput(writing, "<test>")
    for _ in range(100):
        output.write(b"x" * 65536)
        wait_until(lambda: output.drain(0))


@contextlib.contextmanager
def stuck(folder: Path, stream: str) -> Iterator[tuple[subprocess.Popen[bytes], Server]]:
    """`run` in a process whose `stream` is a pipe that nobody reads any more."""
    popen = subprocess.Popen(
        [sys.executable, "-m", "wsmiddleware", "run", "app:app", "--port", "0"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if stream == "stderr" else subprocess.DEVNULL,
    )
    assert popen.stdout
    try:
        found = re.search(rb":(\d+)/", popen.stdout.readline())
        assert found
        yield popen, Server(int(found[1]))
    finally:
        popen.kill()
        popen.communicate()


APP = """
    import logging, sys
    logging.basicConfig(stream=sys.stderr)

    def app(environ, start_response):
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/print":
            print("p" * 8000)
        if environ["PATH_INFO"] == "/log":
            logging.error("l" * 8000)
        if environ["PATH_INFO"] == "/raise":
            raise ValueError("v" * 8000)
        return [b"page"]
"""


@pytest.mark.once
@pytest.mark.parametrize(
    ("stream", "path"),
    [("stderr", "/" + "a" * 8000), ("stderr", "/log"), ("stderr", "/raise"), ("stdout", "/print")],
    ids=["access log", "the application's log", "traceback", "print"],
)
def test_a_stream_that_nobody_reads_does_not_stop_the_server(
    tmp_path: Path, stream: str, path: str
) -> None:
    with stuck(write_app(tmp_path, APP), stream) as (popen, server):
        for _ in range(20):  # twice what a pipe holds
            server.get(path)
        assert server.get("/last").text == "page"
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(10) == 0


@pytest.mark.once
def test_the_last_lines_come_through(tmp_path: Path) -> None:
    source = """
        import atexit, sys
        atexit.register(print, "last of the application", file=sys.stderr)
        def app(environ, start_response):
            start_response("200 OK", [])
            sys.stderr.write("e" * 500_000 + "\\n")
            return [b""]
    """
    with stuck(write_app(tmp_path, source), "stderr") as (popen, server):
        server.get("/")
        popen.send_signal(signal.SIGTERM)
        _, said = popen.communicate(timeout=10)
        assert popen.returncode == 0
        assert b"e" * 500_000 in said
        assert b"last of the application\n" in said


@pytest.mark.once
def test_a_forked_child_speaks_too(tmp_path: Path) -> None:
    source = """
        import os, sys
        def app(environ, start_response):
            print("from the parent", file=sys.stderr)
            if not os.fork():
                print("from the child", file=sys.stderr)
                os._exit(0)
            start_response("200 OK", [])
            return [b""]
    """
    with stuck(write_app(tmp_path, source), "stderr") as (popen, server):
        server.get("/")
        popen.send_signal(signal.SIGTERM)
        _, said = popen.communicate(timeout=10)
        assert said.count(b"from the parent\n") == 1
        assert said.count(b"from the child\n") == 1
