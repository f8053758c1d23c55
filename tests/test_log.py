from __future__ import annotations

import logging
import logging.config
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.servers import environment
from wsmiddleware.exceptions import ConfigError
from wsmiddleware.log import TRACE, logger, redact, set_up_logging


@pytest.fixture(autouse=True)
def untouched_logger() -> Iterator[None]:
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_trace_is_a_level_that_configurations_may_name() -> None:
    config = {"version": 1, "incremental": True, "loggers": {"websocket": {"level": "TRACE"}}}
    logging.config.dictConfig(config)
    assert logger.level == TRACE == 5
    assert logging.getLevelName(TRACE) == "TRACE"


@pytest.mark.parametrize("environ", [{}, {"WSMIDDLEWARE_LOG": ""}, {"WSMIDDLEWARE_LOG": " "}])
def test_logging_is_left_alone_without_the_variable(environ: dict[str, str]) -> None:
    before = logger.level, list(logger.handlers)
    set_up_logging(environ)
    assert (logger.level, logger.handlers) == before


def test_variable_sends_frames_to_standard_error_with_time_and_level(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging({"WSMIDDLEWARE_LOG": "Trace"})
    logger.log(TRACE, "a frame")
    err = capsys.readouterr().err
    assert err.startswith("20") and err.endswith(" TRACE websocket: a frame\n")


def test_second_middleware_changes_the_level_and_adds_no_second_handler(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging({"WSMIDDLEWARE_LOG": "debug"})
    set_up_logging({"WSMIDDLEWARE_LOG": "info"})
    logger.debug("hidden")
    logger.info("shown")
    assert capsys.readouterr().err.count("\n") == 1


def test_unknown_level_is_an_error_that_lists_the_levels() -> None:
    with pytest.raises(ConfigError) as info:
        set_up_logging({"WSMIDDLEWARE_LOG": "loud"})
    assert str(info.value) == (
        "WSMIDDLEWARE_LOG is 'loud'; valid is trace, debug, info, warning, error, critical"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://localhost:8000/ws/chat", "ws://localhost:8000/ws/chat"),
        ("redis://:secret@db:6379/0", "redis://***@db:6379/0"),
        ("rediss://user@db", "rediss://***@db"),
        ("//user:pw@host/x", "//***@host/x"),
        ("/ws/chat?token=s3cret&room=7", "/ws/chat?token=***&room=***"),
        ("/ws/chat?s3cret", "/ws/chat?***"),
        ("/ws/chat?", "/ws/chat?"),
        ("/ws/chat?a=1&&b", "/ws/chat?a=***&&***"),
        ("/ws/chat?a=b=c", "/ws/chat?a=***"),
        ("/ws/chat?c2VjcmV0LXQ=", "/ws/chat?***"),  # base64, as it ends
        ("/ws/chat?c2VjcmV0==&a=c2VjcmV0==", "/ws/chat?***&a=***"),
        ("https://h/p#access_token=x", "https://h/p#***"),
        ("/ws/@user", "/ws/@user"),
        ("http://[bad/p?q=1", "http://[bad/p?q=***"),
        ("", ""),
    ],
)
def test_redact_hides_what_may_be_secret(url: str, shown: str) -> None:
    assert redact(url) == shown


SILENCED = """
    import logging, logging.config, sys
    {before}
    from wsmiddleware import WebSocketMiddleware
    {after}
    WebSocketMiddleware(lambda *_: [], config=False)
"""
STRANGER = "import websocket"
#: The part of websocket-client that logs, as it is.
LOGGING = """
import logging
_logger = logging.getLogger("websocket")
_logger.addHandler(logging.NullHandler())
def error(message): _logger.error(message)
"""


def run(folder: Path, source: str) -> str:
    """What a process says on standard error that has this beside websocket-client."""
    (folder / "websocket").mkdir()
    (folder / "websocket" / "__init__.py").write_text("from ._logging import error\n")
    (folder / "websocket" / "_logging.py").write_text(LOGGING)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


SWEEP = 'logging.config.dictConfig({"version": 1, "root": {"handlers": []}})'
CHOICES = {
    "nothing": ("", "", 1),
    "websocket-client before": (STRANGER, "", 1),
    "websocket-client after": ("", STRANGER, 1),
    "a handler of one's own": (
        STRANGER,
        'logging.getLogger("websocket").addHandler(logging.FileHandler("log"))',
        0,
    ),
    "a handler of the root": (STRANGER, "logging.basicConfig()", 1),
    "silence of one's own": (
        STRANGER,
        'logging.getLogger("websocket").addHandler(logging.NullHandler())',
        0,
    ),
    "silence without a stranger": (
        "",
        'logging.getLogger("websocket").addHandler(logging.NullHandler())',
        0,
    ),
    "a level": (STRANGER, 'logging.getLogger("websocket").setLevel(logging.CRITICAL)', 0),
    "a configuration that names others": ("", SWEEP, 1),
    "disabled": ("", 'logging.getLogger("websocket").disabled = True', 0),
    "disabled, and a configuration that names it": (
        "",
        'loggers = {"websocket": {"level": "CRITICAL"}};'
        'logging.config.dictConfig({"version": 1, "loggers": loggers})',
        0,
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_errors_reach_standard_error_unless_somebody_chose_otherwise_for_us(
    tmp_path: Path, choice: str
) -> None:
    before, after, times = CHOICES[choice]
    said = run(tmp_path, SILENCED.format(before=before, after=after))
    assert said.count(": no listener is loaded from it\n") == times, said


def test_a_strangers_own_records_stay_as_silent_as_it_chose(tmp_path: Path) -> None:
    assert run(tmp_path, "import wsmiddleware, websocket; websocket.error('goodbye')") == ""
