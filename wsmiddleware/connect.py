"""``wsmiddleware connect URL``: a client at the terminal, and in pipes.

The loop belongs to the main thread; a native thread reads standard input, so that nothing needs to
be monkey-patched and ``readline`` can have the terminal. Messages go to standard output, all else
to standard error.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
import gevent
from gevent.event import AsyncResult, Event

from wsmiddleware.client import WebSocketClient, create_websocket_client
from wsmiddleware.exceptions import ConfigError, ConnectionClosed, WebSocketError
from wsmiddleware.log import escape
from wsmiddleware.protocol.frames import CloseCode

if TYPE_CHECKING:
    import termios
else:
    try:
        import termios
    except ImportError:  # Windows
        termios = None

__all__ = ["connect"]

_PROMPT = "> "
_MAX_MESSAGE_SIZE = 2**26
#: Seconds to wait for the pong that separates the server's greeting from its answer.
_FENCE_TIMEOUT = 1.0
_SHOWN_BYTES = 32
_SHOWN_CHARACTERS = 65536
_ENDED_WELL = frozenset({CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RCVD})
_NAMED = frozenset(CloseCode)
_EXIT_FAILED, _EXIT_LOST = 1, 3


@click.command(short_help="Talk to a WebSocket server.")
@click.argument("url")
@click.option("--header", "-H", "headers", multiple=True, metavar="'K: V'", help="Send a header.")
@click.option("--subprotocol", "-s", "subprotocols", multiple=True, metavar="P",
              help="Offer a subprotocol; the first is preferred.")  # fmt: skip
@click.option("--once", is_flag=True, help="End after the first answer.")
@click.option("--binary", is_flag=True, help="Send binary: each line typed, or a pipe as a whole.")
@click.option("--ping", type=click.FloatRange(0.1), metavar="SECONDS",
              help="Ping that often, and show each round trip.")  # fmt: skip
@click.option("--linger", type=click.FloatRange(0), default=2.0, show_default=True,
              metavar="SECONDS",
              help="After the end of a pipe, wait until nothing has come for that long; or inf.",
              )  # fmt: skip
@click.option("--timeout", type=click.FloatRange(0.1), default=10.0, show_default=True,
              metavar="SECONDS", help="For the connection to come about.")  # fmt: skip
def connect(
    url: str,
    headers: tuple[str, ...],
    subprotocols: tuple[str, ...],
    once: bool,
    binary: bool,
    ping: float | None,
    linger: float,
    timeout: float,
) -> int:
    """Connect to URL, ws:// or wss://; lines typed are sent, what arrives is shown.

    In a pipe each line of the input is a message, and standard output gets the messages alone.
    Ctrl-D and Ctrl-C close the connection. Exit status: 0 for a normal end, 1 when no connection
    came about, 2 for a mistake in the command, 3 when the connection was lost or closed with
    an error, or the output cannot be written, 130 for Ctrl-C.
    """
    _open_what_is_closed()
    screen = _Screen(is_prompting=sys.stdin.isatty() and sys.stdout.isatty())
    talk = _Talk(screen, is_once=once, is_binary=binary, linger=linger)
    try:
        client = create_websocket_client(
            url,
            talk,
            headers=[_read_header(text) for text in headers],
            subprotocols=subprotocols,
            connect_timeout=timeout,
            max_message_size=_MAX_MESSAGE_SIZE,
        )
    except (ValueError, ConfigError) as exc:
        raise click.UsageError(str(exc)) from exc
    except WebSocketError as exc:
        click.echo(f"wsmiddleware: {escape(str(exc))}", err=True)
        return _EXIT_FAILED
    return talk.run(client, ping)


def _open_what_is_closed() -> None:
    """Use /dev/null for a standard stream that is closed (``<&-``): Python has None there."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115  (until the process ends)
    if sys.stdout is None:
        _discard_output()


def _discard_output() -> None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)


def _read_header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise click.BadParameter(f"{text!r}; valid is 'Name: value'", param_hint="--header")
    return name.strip(), value.strip()


class _Screen:
    """Writes lines, around the line that is being typed where there is one."""

    def __init__(self, *, is_prompting: bool) -> None:
        self.is_prompting = is_prompting
        #: True while the prompt is shown, maybe with typed text after it.
        self.is_reading = False
        self._is_terminal = sys.stdout.isatty()
        # At a terminal a message is shown in one line; in a pipe it goes on as it came.
        self._readline: Any = None
        self._saved: Any = None
        if is_prompting:
            with contextlib.suppress(ImportError):
                import readline

                self._readline = readline
            if termios is not None:
                self._saved = termios.tcgetattr(sys.stdin.fileno())

    def message(self, message: str | bytes) -> None:
        """Show a message that arrived."""
        kind = "text" if isinstance(message, str) else "binary"
        data = message.encode() if isinstance(message, str) else message
        head = f"< {_now()} {kind} {len(data)} B"
        if self._is_terminal:
            self._line(f"{head}  {_printable(message)}")
            return
        self.note(head)
        sys.stdout.buffer.write(data + b"\n" if isinstance(message, str) else data)
        sys.stdout.buffer.flush()

    def sent(self, message: str | bytes) -> None:
        """Show a message that was sent, unless it is on the screen as the typed line."""
        if not self.is_prompting:
            kind = "text" if isinstance(message, str) else "binary"
            size = len(message.encode() if isinstance(message, str) else message)
            self.note(f"> {_now()} {kind} {size} B")

    def note(self, text: str) -> None:
        """Show a line that is no message."""
        if self.is_prompting:
            self._line(text)
        else:
            click.echo(text, err=True)

    def _line(self, text: str) -> None:
        if not self.is_reading:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
            return
        typed = _PROMPT + (self._readline.get_line_buffer() if self._readline else "")
        # Overwrite the typed text, which is shown again below.
        up = (len(typed) - 1) // (os.get_terminal_size().columns or 80)
        start = f"\x1b[{up}A" if up else ""
        sys.stdout.write(f"\r{start}\x1b[J{text}\n{typed}")
        sys.stdout.flush()

    def leave(self) -> None:
        """Restore the terminal; nothing is typed any more."""
        self.is_prompting = False
        if self.is_reading:
            self.is_reading = False
            is_typing = self._readline and self._readline.get_line_buffer()
            sys.stdout.write("\n" if is_typing else "\r\x1b[J")
            sys.stdout.flush()
        if self._saved is not None:
            # The thread that reads is left inside readline, which has the terminal in its own mode.
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._saved)
            self._saved = None


class _Talk:
    """The client's listener, and what is sent."""

    client: WebSocketClient

    def __init__(self, screen: _Screen, *, is_once: bool, is_binary: bool, linger: float) -> None:
        self._screen = screen
        self._is_once = is_once
        self._is_binary = is_binary
        self._linger = linger
        #: Set to the exit status when it is time to close.
        self._outcome = AsyncResult()
        self._pong = Event()
        self._pinged_at = 0.0
        self._last_came = math.inf
        self._is_answer_due = False

    def run(self, client: WebSocketClient, ping: float | None) -> int:
        """Talk until something ends it; the exit status."""
        self.client = client
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, self._outcome.set, 128 + number)
        told = f", subprotocol {client.subprotocol}" if client.subprotocol else ""
        self._screen.note(f"* {_now()} connected to {client.url}{told}")
        if ping:
            gevent.spawn(self._ping, ping)
        gevent.spawn(self._send_input)
        try:
            status: int = self._outcome.get()
        finally:
            self._screen.leave()
        client.disconnect()
        if status in (130, 143):
            click.echo(f"* {_now()} closed", err=True)
        return status

    # -- what arrives -------------------------------------------------------------------------

    def on_message(self, message: str | bytes) -> None:
        """Text, and binary."""
        self._last_came = time.monotonic()
        try:
            self._screen.message(message)
        except BrokenPipeError:  # nobody reads our output any more
            _discard_output()
            self._outcome.set(0)
            return
        except OSError as exc:
            _discard_output()
            self._outcome.set(_EXIT_LOST)
            self._screen.note(f"! {_now()} the output cannot be written: {exc.strerror}")
            return
        if self._is_answer_due:
            self._outcome.set(0)

    def on_pong(self) -> None:
        """The answer to a ping of ours."""
        if self._pong.is_set() and self._pinged_at:
            milliseconds = (time.perf_counter() - self._pinged_at) * 1000
            self._screen.note(f"* {_now()} pong {milliseconds:.1f} ms")
        self._pong.set()

    def on_error(self, type: str, cause: BaseException) -> None:
        """Show an error."""
        self._screen.note(f"! {_now()} {type}: {escape(str(cause))}")

    def on_close(self) -> None:
        """The connection has ended, from either side."""
        if self._outcome.ready():
            return
        code, reason = self.client.close_code, self.client.close_reason
        name = CloseCode(code).name if code in _NAMED else "private"
        told = f": {escape(reason)}" if reason else ""
        self._screen.note(f"* {_now()} closed by the server with {code} {name}{told}")
        is_fine = code in _ENDED_WELL and not self._is_once
        self._outcome.set(0 if is_fine else _EXIT_LOST)

    # -- what is sent -------------------------------------------------------------------------

    def _ping(self, interval: float) -> None:
        self._await_pong()
        with contextlib.suppress(ConnectionClosed):
            while True:
                self._pinged_at = time.perf_counter()
                self.client.send_ping()
                gevent.sleep(interval)

    def _await_pong(self) -> None:
        """Wait for the server's greeting, if it sends one: the pong to our ping comes after it."""
        with contextlib.suppress(ConnectionClosed):
            self.client.send_ping()
        self._pong.wait(_FENCE_TIMEOUT)

    def _send_input(self) -> None:
        source = _read_terminal if sys.stdin.isatty() else _read_pipe
        if self._is_once:
            self._await_pong()
        count = 0
        try:
            for data in _from_thread(source, self._screen, self._is_binary):
                self._send(data)
                count += 1
                if self._is_once and sys.stdin.isatty():
                    break
        except ConnectionClosed:
            return  # on_close has said so
        except ValueError as exc:
            self._screen.note(f"! {_now()} {exc}")
            self._outcome.set(2)
            return
        self._end_of_input(count)

    def _send(self, data: bytes) -> None:
        message = data if self._is_binary else data.decode()
        self._is_answer_due = self._is_once
        if isinstance(message, str):
            self.client.send_text(message)
        else:
            self.client.send_binary(message)
        self._screen.sent(message)

    def _end_of_input(self, count: int) -> None:
        if self._is_once:
            self._is_answer_due = True
            if not count and self._last_came < math.inf:
                self._outcome.set(0)
        elif sys.stdin.isatty():
            self._outcome.set(0)
        elif count and self._linger < math.inf:
            # Answers may be on their way: the end of the pipe is not the end of the conversation.
            self._last_came = time.monotonic()
            while (left := self._last_came + self._linger - time.monotonic()) > 0:
                gevent.sleep(left)
            self._outcome.set(0)


def _from_thread(
    source: Callable[[_Screen, bool], Iterator[bytes]], screen: _Screen, is_binary: bool
) -> Iterator[bytes]:
    """The items of `source`, which runs in a native thread and waits until each one was used."""
    loop = gevent.get_hub().loop
    taken = threading.Semaphore(0)
    awaited: list[AsyncResult] = [AsyncResult()]

    def give(item: bytes | ValueError | None) -> None:
        loop.run_callback_threadsafe(awaited[0].set, item)
        taken.acquire()

    def read() -> None:
        try:
            for item in source(screen, is_binary):
                give(item)
        except ValueError as exc:
            give(exc)
        except OSError:
            pass
        give(None)

    # A daemon: it still waits for input when the other side ends the conversation.
    threading.Thread(target=read, daemon=True).start()
    while (item := awaited[0].get()) is not None:
        if isinstance(item, ValueError):
            raise item
        yield item
        awaited[0] = AsyncResult()
        taken.release()


def _read_terminal(screen: _Screen, is_binary: bool) -> Iterator[bytes]:
    while True:
        prompt = _PROMPT if screen.is_prompting else ""
        screen.is_reading = bool(prompt)
        try:
            line = input(prompt)
        except EOFError:
            if prompt:
                sys.stdout.write("\n")  # what comes next shall not stand behind the prompt
            return
        finally:
            screen.is_reading = False
        if line:
            yield line.encode("utf-8", "surrogateescape")


def _read_pipe(screen: _Screen, is_binary: bool) -> Iterator[bytes]:
    """Lines, or all as one message. By descriptor: a daemon must not hold `sys.stdin`'s lock."""
    data = b""
    # Not 0: where that was closed, it may be a socket of ours by now.
    while piece := os.read(sys.stdin.fileno(), 65536):
        data += piece
        if not is_binary:
            *lines, data = data.split(b"\n")
            yield from (line.removesuffix(b"\r") for line in lines)
        if len(data) > _MAX_MESSAGE_SIZE:
            raise ValueError(f"a message of more than {_MAX_MESSAGE_SIZE} bytes")
    if data:
        yield data


def _now() -> str:
    return datetime.now().strftime("%H:%M:%S.%f")[:-3]


def _printable(message: str | bytes) -> str:
    """A message in one line; what a terminal would obey is escaped."""
    if isinstance(message, bytes):
        more = " …" if len(message) > _SHOWN_BYTES else ""
        return message[:_SHOWN_BYTES].hex(" ") + more
    return escape(message, _SHOWN_CHARACTERS)
