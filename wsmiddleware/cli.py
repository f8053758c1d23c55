"""The command line: ``python -m wsmiddleware``, or the installed ``wsmiddleware``.

A mistake is one line on standard error and exit status 2. Commands are added to `cli`; each is a
function that returns its exit status, None for 0.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from wsmiddleware import sockets
from wsmiddleware.application import CommandError, load_app, parse_spec
from wsmiddleware.config import Settings, load_settings
from wsmiddleware.connect import connect
from wsmiddleware.console import never_block
from wsmiddleware.exceptions import ConfigError, ListenerError, WebSocketError
from wsmiddleware.listeners.channel import Channel
from wsmiddleware.listeners.source import file_of
from wsmiddleware.log import set_up_logging
from wsmiddleware.metrics import Metrics
from wsmiddleware.registry import Registry

__all__ = ["CommandError", "cli", "load_app", "main"]

# Where it listens unless it is told otherwise.
_HOST, _PORT = "127.0.0.1", 8000

# Seconds after the drain for what the application has registered to run at exit.
_EXIT_SECONDS = 1.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wsmiddleware", message="%(prog)s %(version)s")
def cli() -> None:
    """WebSockets for Flask, Bottle and every other WSGI application."""


cli.add_command(connect)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command with `arguments`, those of the process by default; ends with `SystemExit`."""
    try:
        status = cli.main(arguments, prog_name="wsmiddleware", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        status = exc.exit_code
    except click.ClickException as exc:
        click.echo(f"wsmiddleware: {exc.format_message()}", err=True)
        status = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = 130
    sys.exit(status)


@cli.command()
@click.argument("app")
@click.option(
    "--host", help="Address to listen on; :: is every one, of IPv4 too.  [default: 127.0.0.1]"
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.  [default: 8000]",
)
@click.option("--unix", metavar="PATH", help="Unix socket to listen on, in place of an address.")
@click.option(
    "--fd",
    type=click.IntRange(0),
    metavar="N",
    help="Inherited socket to serve; systemd's is found without it.",
)
@click.option("--certfile", metavar="F", help="PEM file with the certificate chain: https, wss.")
@click.option("--keyfile", metavar="F", help="PEM file with its private key, if in another file.")
@click.option("--reload", is_flag=True, help="Restart when code or a listener changes.")
def run(
    app: str,
    host: str | None,
    port: int | None,
    unix: str | None,
    fd: int | None,
    certfile: str | None,
    keyfile: str | None,
    reload: bool,
) -> int:
    """Serve APP, which is module:callable or module:factory(), on gevent.

    The process is monkey-patched before APP is imported. Prints the URL and the URL of each
    channel. SIGTERM and Ctrl-C tell every client (1001) before the server ends; a second Ctrl-C
    ends it at once.
    """
    from wsmiddleware.reloader import supervise, take_listener

    parse_spec(app)
    if keyfile and not certfile:
        raise CommandError("--keyfile goes with --certfile, which is missing")
    listener_fd = take_listener()
    if reload and listener_fd is None:
        _tls_context(certfile, keyfile)
        with _listening(host, port, unix, fd) as listener:
            return supervise(listener)
    _patch()
    never_block()
    context = _tls_context(certfile, keyfile)
    if listener_fd is None:
        application = load_app(app)
        with _listening(host, port, unix, fd) as listener:
            return _serve(application, listener, host, context)
    return _serve_reloading(app, socket.socket(fileno=listener_fd), host, context)


@contextlib.contextmanager
def _listening(
    host: str | None, port: int | None, unix: str | None, fd: int | None
) -> Iterator[socket.socket]:
    """The socket that the options name; a Unix socket's file is removed behind it."""
    given = {"--host": host, "--port": port, "--unix": unix, "--fd": fd}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1 and names != ["--host", "--port"]:
        raise CommandError(f"{' and '.join(names)}: one says where to listen")
    try:
        if fd is None and not names:
            fd = sockets.handed_over()
        if unix is not None:
            listener = sockets.open_unix(unix)
        elif fd is not None:
            listener = sockets.take_over(fd)
        else:
            listener = sockets.listen(host or _HOST, _PORT if port is None else port)
    except (OSError, ValueError) as exc:
        raise CommandError(str(exc)) from exc
    try:
        yield listener
    finally:
        listener.close()
        if unix is not None:
            sockets.remove_unix(unix)


@cli.command()
@click.argument("app", required=False)
@click.option("--directory", metavar="D", help="Check the listeners of this directory.")
def check(app: str | None, directory: str | None) -> int:
    """Load every setting and listener: those of APP, or of the current directory.

    Prints each channel with its class, or each error with its place; exit status 1 on any.
    """
    _patch()
    status = 0
    if app is not None:
        status = _check(functools.partial(_check_app, app))
    if app is None or directory is not None:
        status = max(status, _check(functools.partial(_check_directory, directory)))
    return status


def _check(part: Callable[[], int]) -> int:
    """Run a part of `check`; where settings are wrong, show what is wrong with listeners too."""
    try:
        return part()
    except WebSocketError as exc:
        click.echo(str(exc), err=True)
        if isinstance(exc, ConfigError):
            for place in filter(Path.is_dir, exc.places):
                _check_listeners(Settings(directory=place))
        return 1


def _patch() -> None:
    from gevent import monkey

    monkey.patch_all()


def _tls_context(certfile: str | None, keyfile: str | None) -> ssl.SSLContext | None:
    if certfile is None:
        return None
    for option, file in (("--certfile", certfile), ("--keyfile", keyfile)):
        if file is not None and not os.path.isfile(file):
            raise CommandError(f"{option} {file}: no such file")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # OpenSSL would ask for a missing password at the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as exc:
        files = " and ".join(filter(None, (certfile, keyfile)))
        # OpenSSL gives no reason: for each of these errors it says "PEM lib".
        reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
        if isinstance(exc, ssl.SSLError) and not exc.reason:
            reason = "a certificate or an unencrypted key is missing, or not in PEM format"
        raise CommandError(f"{files}: no usable certificate with its key ({reason})") from exc
    return context


def _serve(
    app: Callable[..., Any],
    listener: socket.socket,
    host: str | None,
    context: ssl.SSLContext | None,
    stopping: Any = None,
) -> int:
    from wsmiddleware.protocol.frames import CloseCode
    from wsmiddleware.reloader import RELOAD_STATUS
    from wsmiddleware.server import WSGIServer, freeze_heap, serve

    address = listener.getsockname()
    host = host or (address[0] if isinstance(address, tuple) else "")
    # Without SERVER_NAME gevent would ask the DNS.
    options: dict[str, Any] = {"environ": {"SERVER_NAME": host, "wsgi.multithread": True}}
    if context is not None:
        options["ssl_context"] = context
    server = WSGIServer(listener, app, **options)

    urls = list(sockets.url_of(listener, host, "" if context is None else "s", _channels()))

    def announce() -> None:
        for line in urls:
            click.echo(line)
        for line in _notes():
            click.echo(f"wsmiddleware: {line}", err=True)

    freeze_heap()
    code = serve(server, stopping, announce)
    status = RELOAD_STATUS if code == CloseCode.SERVICE_RESTART else 0
    _exit_within(_EXIT_SECONDS, status)
    return status


def _exit_within(seconds: float, status: int) -> None:
    """End the process even if a thread of the application, which is no daemon, would keep it."""
    from gevent import monkey

    # Native ones: the loop may not run any more.
    sleep = monkey.get_original("time", "sleep")

    def wait() -> None:
        sleep(seconds)
        os._exit(status)

    monkey.get_original("_thread", "start_new_thread")(wait, ())


def _serve_reloading(
    spec: str, listener: socket.socket, host: str | None, context: ssl.SSLContext | None
) -> int:
    """Serve in a child of `supervise` until a file changes, or wait for a change that mends it."""
    import gevent
    from gevent.event import AsyncResult

    from wsmiddleware.reloader import RELOAD_STATUS, Files, error_places

    try:
        app = load_app(spec)
    except CommandError as exc:
        files = Files(*error_places(exc))  # before the user reads of it and mends it
        click.echo(f"wsmiddleware: {exc.format_message()}", err=True)
        click.echo("wsmiddleware: waiting for a change", err=True)
        return RELOAD_STATUS if files.wait() else 0
    stopping = AsyncResult()
    gevent.spawn(_stop_at_change, Files(*_listener_places()), stopping)
    return _serve(app, listener, host, context, stopping)


def _stop_at_change(files: Any, stopping: Any) -> None:
    from wsmiddleware.protocol.frames import CloseCode

    changed = files.wait()
    if changed:
        click.echo(f"wsmiddleware: {changed} has changed, restarting", err=True)
    stopping.set(CloseCode.SERVICE_RESTART if changed else CloseCode.GOING_AWAY)


def _listener_places() -> tuple[list[Path], list[Path]]:
    """The directories of the listeners and the settings' files."""
    from wsmiddleware import info

    known = info.middlewares()
    files = [each.settings.config_file for each in known]
    return [each.directory for each in known if each.directory], [file for file in files if file]


def _channels() -> list[str]:
    from wsmiddleware import info

    channels = [each.registry.channels.values() for each in info.middlewares()]
    return [channel.pattern for each in channels for channel in each]


def _notes() -> Iterator[str]:
    """The warning at a start without any channel: somebody meant to have one."""
    from wsmiddleware import info

    if not info.middlewares():
        yield "the application has no WebSocketMiddleware around it: it serves no WebSocket"
    for middleware in info.middlewares():
        if not middleware.registry.channels:
            what = "a <channel>.py in the listener directory, or middleware.register()"
            found = "does not exist"
            if middleware.directory is not None and middleware.directory.is_dir():
                found = "holds no listener"
            yield f"there is no channel: {middleware.directory} {found}; {what} makes one"


def _check_app(spec: str) -> int:
    from wsmiddleware import info

    try:
        load_app(spec)
    except CommandError as exc:
        if isinstance(exc.__cause__, WebSocketError):
            raise exc.__cause__ from exc
        raise
    for middleware in info.middlewares():
        for channel in middleware.registry.channels.values():
            _print_channel(channel.pattern, channel)
    if not info.middlewares():
        click.echo(f"{spec} has no WebSocketMiddleware around it", err=True)
        return 1
    return 0


def _check_directory(directory: str | None) -> int:
    set_up_logging()
    file = Path(os.environ.get("WSMIDDLEWARE_CONFIG") or "websocket.json")
    # `check` must not write a file.
    is_made = file.exists() or not file.parent.is_dir()
    overrides = {} if directory is None else {"directory": directory}
    settings = load_settings(None if is_made else False, overrides)
    return _check_listeners(settings)


def _check_listeners(settings: Settings) -> int:
    if settings.directory is None or not settings.directory.is_dir():
        return 0
    status = 0
    for name, result in Registry(settings, Metrics(), "").load(settings.directory):
        if isinstance(result, ListenerError):
            click.echo(f"{name}: {result}", err=True)
            status = 1
        else:
            _print_channel(name, result)
    return status


def _print_channel(name: str, channel: Channel) -> None:
    cls = channel.listener_class
    click.echo(f"{name}: {cls.__qualname__} ({file_of(cls)})")
