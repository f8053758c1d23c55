"""The command line: ``python -m wsmiddleware``, or the installed ``wsmiddleware``.

A mistake is one line on standard error and exit status 2. Commands are added to `cli`; each is a
function that returns its exit status, None for 0.
"""

from __future__ import annotations

import importlib
import os
import socket
import ssl
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from wsmiddleware.config import load_settings
from wsmiddleware.connect import connect
from wsmiddleware.console import never_block
from wsmiddleware.exceptions import ListenerError, WebSocketError, text_of
from wsmiddleware.listeners.channel import Channel
from wsmiddleware.listeners.source import file_of
from wsmiddleware.log import logger, set_up_logging
from wsmiddleware.metrics import Metrics
from wsmiddleware.registry import Registry

__all__ = ["CommandError", "cli", "load_app", "main"]

_BACKLOG = 1024

# Seconds after the grace period for what the application has registered for the exit.
_EXIT_SECONDS = 1.0


class CommandError(click.ClickException):
    """What the user has to mend, in one line; exit status 2."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--certfile", metavar="F", help="PEM file with the certificate chain: https, wss.")
@click.option("--keyfile", metavar="F", help="PEM file with its private key, if in another file.")
@click.option("--reload", is_flag=True, help="Restart when code or a listener changes.")
def run(
    app: str, host: str, port: int, certfile: str | None, keyfile: str | None, reload: bool
) -> int:
    """Serve APP, which is module:callable, on gevent.

    The process is monkey-patched before APP is imported. Prints the URL and the URL of each
    channel. SIGTERM and Ctrl-C tell every client (1001) before the server ends; a second Ctrl-C
    ends it at once.
    """
    from wsmiddleware.reloader import supervise, take_listener

    _check_spec(app)
    if keyfile and not certfile:
        raise CommandError("--keyfile goes with --certfile, which is missing")
    listener_fd = take_listener()
    if reload and listener_fd is None:
        _tls_context(certfile, keyfile)
        return supervise(_listen(host, port))
    _patch()
    never_block()
    context = _tls_context(certfile, keyfile)
    if listener_fd is None:
        application = load_app(app)
        return _serve(application, _listen(host, port), host, context)
    listener = socket.socket(fileno=listener_fd)
    return _serve_reloading(app, listener, host, context)


@cli.command()
@click.argument("app", required=False)
@click.option("--directory", metavar="D", help="Check the listeners of this directory.")
def check(app: str | None, directory: str | None) -> int:
    """Load every setting and listener: those of APP, or of the current directory.

    Prints each channel with its class, or each error with its place; exit status 1 on any.
    """
    _patch()
    try:
        if app is None or directory is not None:
            return max(_check_app(app) if app else 0, _check_directory(directory))
        return _check_app(app)
    except WebSocketError as exc:
        click.echo(str(exc), err=True)
        return 1


def load_app(spec: str) -> Callable[..., Any]:
    """The WSGI callable that ``module:callable`` names, imported from the current directory first.

    Runs the module. Raises `CommandError` with the cause.
    """
    name, path = _check_spec(spec)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(name)
        # To look for an attribute may run the user's code as well.
        for attribute in path.split("."):
            if not hasattr(target, attribute):
                raise CommandError(f"cannot import {spec}: {name} has no {path!r}")
            target = getattr(target, attribute)
    except (CommandError, KeyboardInterrupt):
        raise
    # SystemExit: a module that is a script by mistake; gevent.Timeout: one that waited too long.
    except BaseException as exc:
        logger.debug("%s cannot be imported", name, exc_info=exc)
        raise CommandError(f"cannot import {spec}: {_describe(exc)}") from exc
    if not callable(target):
        kind = type(target).__name__
        raise CommandError(f"cannot serve {spec}: it is of type {kind}, which cannot be called")
    result: Callable[..., Any] = target
    return result


def _check_spec(spec: str) -> tuple[str, str]:
    name, _, path = spec.partition(":")
    if not name or not path:
        raise CommandError(f"APP is {spec!r}; valid is module:callable, as in app:app")
    if "/" in name or name.endswith(".py"):
        module = name.removesuffix(".py").strip("./").replace("/", ".")
        raise CommandError(f"APP is {spec!r}, a path; a module is meant: {module}:{path}")
    return name, path


def _describe(exc: BaseException) -> str:
    """One error in one line, with its place in the user's code."""
    if isinstance(exc, WebSocketError):
        return str(exc)  # names its place itself
    text = "; ".join(line.strip() for line in text_of(exc).splitlines() if line.strip())
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename != importlib.__file__
    ]
    # The first frame is ours; an import that fails at once has no other.
    if isinstance(exc, SyntaxError) or len(frames) < 2:
        return f"{type(exc).__name__}: {text}"
    return f"{type(exc).__name__}: {text} ({frames[-1].filename}, line {frames[-1].lineno})"


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
        # Without a password OpenSSL would ask for it at the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as exc:
        files = " and ".join(filter(None, (certfile, keyfile)))
        # For all of these OpenSSL says "PEM lib", and has no reason.
        reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
        if isinstance(exc, ssl.SSLError) and not exc.reason:
            reason = "a certificate or an unencrypted key is missing, or not in PEM format"
        raise CommandError(f"{files}: no usable certificate with its key ({reason})") from exc
    return context


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as exc:
        reason = (exc.strerror or str(exc)).partition(" (")[0]
        raise CommandError(f"cannot listen on {host}:{port}: {reason}") from exc


def _serve(
    app: Callable[..., Any],
    listener: socket.socket,
    host: str,
    context: ssl.SSLContext | None,
    stopping: Any = None,
) -> int:
    from wsmiddleware.protocol.frames import CloseCode
    from wsmiddleware.reloader import RELOAD_STATUS
    from wsmiddleware.server import WSGIServer, freeze_heap, serve

    # SERVER_NAME: without it gevent asks the DNS.
    options: dict[str, Any] = {"environ": {"SERVER_NAME": host, "wsgi.multithread": True}}
    if context is not None:
        options["ssl_context"] = context
    server = WSGIServer(listener, app, **options)

    def announce() -> None:
        for line in _urls(host, server.server_port, context is not None):
            click.echo(line)

    freeze_heap()
    code = serve(server, stopping, announce)
    status = RELOAD_STATUS if code == CloseCode.SERVICE_RESTART else 0
    _exit_within(_EXIT_SECONDS, status)
    return status


def _exit_within(seconds: float, status: int) -> None:
    """End the process even if a thread of the application, which is no daemon, would keep it."""
    from gevent import monkey

    # Native ones: the hub may not turn any more.
    sleep = monkey.get_original("time", "sleep")

    def wait() -> None:
        sleep(seconds)
        os._exit(status)

    monkey.get_original("_thread", "start_new_thread")(wait, ())


def _serve_reloading(
    spec: str, listener: socket.socket, host: str, context: ssl.SSLContext | None
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


def _urls(host: str, port: int, is_secure: bool) -> Iterator[str]:
    """The page's URL and that of every channel, as a browser on this machine would write them."""
    from wsmiddleware import info

    # Nobody can connect to "every address".
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    secure = "s" if is_secure else ""
    yield f"http{secure}://{where}/"
    for middleware in info.middlewares():
        for channel in middleware.registry.channels.values():
            yield f"ws{secure}://{where}{channel.pattern}"


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
    # To check makes no file.
    is_made = file.exists() or not file.parent.is_dir()
    overrides = {} if directory is None else {"directory": directory}
    settings = load_settings(None if is_made else False, overrides)
    status = 0
    if settings.directory is None or not settings.directory.is_dir():
        return status
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
