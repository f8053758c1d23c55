from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from wsmiddleware.config import Settings, load_settings
from wsmiddleware.exceptions import ConfigError


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A current directory with a listener directory, so that nothing is amiss."""
    (tmp_path / "websockets").mkdir()
    return tmp_path


def load(
    cwd: Path, file: object = None, environ: dict[str, str] | None = None, **keywords: object
) -> Settings:
    if file is not None:
        text = file if isinstance(file, str) else json.dumps(file)
        (cwd / "websocket.json").write_text(text, "utf-8")
    return load_settings(None, keywords, environ or {}, cwd)


def refusal(cwd: Path, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as info:
        load(cwd, *args, **kwargs)
    return str(info.value)


# Which source wins


def test_defaults_are_the_specified_ones(cwd: Path) -> None:
    settings = load(cwd)
    assert settings.to_dict() == {
        "directory": str(cwd / "websockets"),
        "request_timeout": 50,
        "idle_timeout": 300,
        "ping_interval": 20,
        "ping_timeout": 20,
        "grace_period": 5,
        "handshake_timeout": 10,
        "keep_alive": 5,
        "max_head_size": 65_536,
        "max_message_size": 1_048_576,
        "max_connections": settings.max_connections,
        "max_message_rate": None,
        "send_queue_size": 1_048_576,
        "send_timeout": 5,
        "slow_consumer": "close",
        "allowed_origins": "same-origin",
        "trusted_hosts": [],
        "subprotocols": [],
        "compression": True,
        "broadcast_scope": "channel",
        "close_timeout": 5,
        "debug": False,
        "json": None,
    }
    assert settings.sources == {}


def test_keyword_beats_variable_beats_file_beats_default(cwd: Path) -> None:
    file = {"requestTimeout": 1, "idleTimeout": 2, "pingTimeout": 3}
    environ = {"WSMIDDLEWARE_REQUEST_TIMEOUT": "10", "WSMIDDLEWARE_IDLE_TIMEOUT": "20"}
    settings = load(cwd, file, environ, request_timeout=100)
    values = [settings.request_timeout, settings.idle_timeout, settings.ping_timeout]
    assert values == [100, 20, 3]
    assert settings.sources == {
        "request_timeout": "keyword argument request_timeout",
        "idle_timeout": "environment variable WSMIDDLEWARE_IDLE_TIMEOUT",
        "ping_timeout": f'{cwd}/websocket.json: "pingTimeout"',
    }


def test_every_kind_is_read_from_variables(cwd: Path) -> None:
    environ = {
        "WSMIDDLEWARE_ALLOWED_ORIGINS": "https://a.example, https://*.b.example",
        "WSMIDDLEWARE_SUBPROTOCOLS": "v2,v1",
        "WSMIDDLEWARE_COMPRESSION": " off ",
        "WSMIDDLEWARE_SLOW_CONSUMER": "drop",
        "WSMIDDLEWARE_MAX_MESSAGE_RATE": "2.5",
        "WSMIDDLEWARE_MAX_CONNECTIONS": "7",
        "WSMIDDLEWARE_DIRECTORY": "websockets",
    }
    settings = load(cwd, environ=environ)
    assert settings.allowed_origins == ("https://a.example", "https://*.b.example")
    assert settings.subprotocols == ("v2", "v1")
    assert settings.compression is False
    assert settings.slow_consumer == "drop"
    assert settings.max_message_rate == 2.5
    assert settings.max_connections == 7
    assert settings.directory == cwd / "websockets"


def test_environment_is_the_process_own_by_default(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("WSMIDDLEWARE_DEBUG", "yes")
    settings = load_settings()
    assert settings.debug is True
    assert settings.config_file == cwd / "websocket.json"


@pytest.mark.parametrize(
    "variable",
    [
        "WSMIDDLEWARE_LOG",
        "WSMIDDLEWARE_SERVICE_HOST",
        "WSMIDDLEWARE_SERVICE_PORT_HTTP",
        "WSMIDDLEWARE_PORT",
        "WSMIDDLEWARE_PORT_80_TCP_ADDR",
        "UNRELATED",
    ],
)
def test_variables_that_are_no_settings_are_left_alone(cwd: Path, variable: str) -> None:
    assert load(cwd, environ={variable: "tcp://10.0.0.1:80"}).sources == {}


def test_empty_variable_counts_as_not_set(cwd: Path) -> None:
    environ = {"WSMIDDLEWARE_DEBUG": "", "WSMIDDLEWARE_CONFIG": "", "WSMIDDLEWARE_TYPO": ""}
    settings = load(cwd, {"debug": True}, environ)
    assert settings.debug is True
    assert settings.config_file == cwd / "websocket.json"


# What is refused


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({"request_timeout": 0}, "keyword argument request_timeout is 0; valid is "),
        (
            {"environ": {"WSMIDDLEWARE_DEBUG": "maybe"}},
            "environment variable WSMIDDLEWARE_DEBUG is 'maybe'; valid is true or false",
        ),
        ({"file": {"slowConsumer": "wait"}}, "{cwd}/websocket.json: \"slowConsumer\" is 'wait'; "),
        ({"file": {"idleTimeout": "50"}}, "{cwd}/websocket.json: \"idleTimeout\" is '50'; "),
        ({"file": '{"idleTimeout": NaN}'}, '{cwd}/websocket.json: "idleTimeout" is nan; '),
        ({"file": '{"idleTimeout": 1e999}'}, '{cwd}/websocket.json: "idleTimeout" is inf; '),
        (
            {"allowed_origins": ["https://a/x"]},
            "keyword argument allowed_origins is ['https://a/x'] (not an origin: 'https://a/x'); ",
        ),
        ({"directory": None}, "keyword argument directory is None; valid is the path of"),
        ({"listeners": 7}, "keyword argument listeners is 7; valid is the path of a directory"),
    ],
)
def test_wrong_value_names_place_value_and_what_is_valid(
    cwd: Path, given: dict[str, Any], start: str
) -> None:
    message = refusal(cwd, **given)
    assert message.startswith(start.replace("{cwd}", str(cwd)))
    assert "valid is" in message


def test_wrong_value_is_shown_shortened(cwd: Path) -> None:
    assert len(refusal(cwd, slow_consumer="x" * 100_000)) < 300


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({"requst_timeout": 5}, "keyword argument requst_timeout is unknown (did you mean request"),
        (
            {"environ": {"WSMIDDLEWARE_PING_INTERVALL": "5"}},
            "environment variable WSMIDDLEWARE_PING_INTERVALL is unknown "
            "(did you mean WSMIDDLEWARE_PING_INTERVAL?); valid are WSMIDDLEWARE_DIRECTORY, ",
        ),
        (
            {"file": {"idle_timeout": 5}},
            '{cwd}/websocket.json: key "idle_timeout" is unknown (did you mean "idleTimeout"?); ',
        ),
        ({"file": {"zzz": 5}}, '{cwd}/websocket.json: key "zzz" is unknown; valid are "directory"'),
    ],
)
def test_unknown_name_is_refused_with_the_nearest_one(
    cwd: Path, given: dict[str, Any], start: str
) -> None:
    assert refusal(cwd, **given).startswith(start.replace("{cwd}", str(cwd)))


def test_value_of_an_unknown_name_is_not_shown(cwd: Path) -> None:
    assert "hunter2" not in refusal(cwd, environ={"WSMIDDLEWARE_PASSWORD": "hunter2"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"debug" true}', ", line 1, column 10: not valid JSON: "),
        ('{"debug": true, "debug": false}', ': not valid JSON: the key "debug" stands there twice'),
        ("[" * 100_000, ": not valid JSON: "),
        ('{"requestTimeout": ' + "1" * 5000 + "}", ": not valid JSON: "),
        ("[1, 2]", ": holds [1, 2]; valid is a JSON object"),
        ("", ", line 1, column 1: not valid JSON: "),
    ],
)
def test_broken_file_is_refused_with_its_place(cwd: Path, text: str, message: str) -> None:
    assert refusal(cwd, text).startswith(f"{cwd}/websocket.json{message}")


def test_file_that_is_not_utf8_is_refused(cwd: Path) -> None:
    (cwd / "websocket.json").write_bytes(b'{"directory": "\xff"}')
    assert "websocket.json: not valid JSON: 'utf-8' codec" in refusal(cwd)


def test_file_with_a_byte_order_mark_is_read(cwd: Path) -> None:
    assert load(cwd, '\ufeff{"debug": true}').debug is True


# The file: which one, and making it


def test_missing_file_is_made_with_the_seed_defaults(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load(tmp_path)
    assert settings.config_file == tmp_path / "websocket.json"
    assert (tmp_path / "websocket.json").read_text() == (
        "{\n"
        '  "directory": "{config-dir}/websockets/",\n'
        '  "requestTimeout": 50,\n'
        '  "idleTimeout": 300\n'
        "}\n"
    )
    assert os.listdir(tmp_path) == ["websocket.json"]
    # The second start reads what the first one wrote, and means the same by it.
    assert load(tmp_path) == settings
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_existing_file_is_not_touched(cwd: Path) -> None:
    load(cwd, "{}")
    assert (cwd / "websocket.json").read_text() == "{}"


def test_variable_beats_the_config_argument_and_false_means_no_file(cwd: Path) -> None:
    (cwd / "a.json").write_text('{"pingTimeout": 1}')
    (cwd / "b.json").write_text('{"pingTimeout": 2}')
    environ = {"WSMIDDLEWARE_CONFIG": "a.json"}
    assert load_settings(cwd / "b.json", {}, {}, cwd).ping_timeout == 2
    assert load_settings(cwd / "b.json", {}, environ, cwd).config_file == cwd / "a.json"
    without = load_settings(False, {}, environ, cwd)
    assert (without.config_file, without.ping_timeout) == (None, 20)
    assert sorted(os.listdir(cwd)) == ["a.json", "b.json", "websockets"]


def test_all_that_is_wrong_is_shown_at_once(cwd: Path) -> None:
    (cwd / "websocket.json").write_text('{"idleTimeout": "x", "requestTimeOut": 1, "debug": true}')
    with pytest.raises(ConfigError, match=r"^4 settings are wrong:\n") as info:
        load_settings(None, {"ping_interval": -1}, {"WSMIDDLEWARE_DEBUG": "maybe"}, cwd)
    lines = str(info.value).splitlines()[1:]
    assert [line.split(" is ")[0] for line in lines] == [
        f'  {cwd}/websocket.json: "idleTimeout"',
        f'  {cwd}/websocket.json: key "requestTimeOut"',
        "  environment variable WSMIDDLEWARE_DEBUG",
        "  keyword argument ping_interval",
    ]


@pytest.mark.parametrize("config_argument", [True, 7, b"x"])
def test_config_argument_of_a_wrong_type_is_refused(cwd: Path, config_argument: Any) -> None:
    with pytest.raises(ConfigError, match=r"^config is .*; valid is the path of a file, or False"):
        load_settings(config_argument, {}, {}, cwd)


def test_config_in_a_folder_that_is_missing_is_refused(cwd: Path) -> None:
    with pytest.raises(ConfigError, match=f"there is no folder {cwd}/etc$"):
        load_settings("etc/websocket.json", {}, {}, cwd)


def test_config_that_cannot_be_read_is_refused(cwd: Path) -> None:
    with pytest.raises(ConfigError, match=r"websockets: cannot be read: Is a directory") as info:
        load_settings("websockets", {}, {}, cwd)
    assert isinstance(info.value.__cause__, OSError)


def test_place_that_cannot_be_written_to_is_a_warning(
    cwd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Not even root makes a file in /proc.
    settings = load_settings("/proc/websocket.json", {"listeners": "websockets"}, {}, cwd)
    assert settings.config_file is None
    assert settings.directory == cwd / "websockets"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("/proc/websocket.json: cannot be made (")


def test_disk_that_is_full_leaves_no_half_file(cwd: Path, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        settings = load(cwd)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert settings.config_file is None
    assert os.listdir(cwd) == ["websockets"]
    assert "cannot be made (File too large)" in caplog.text


# The listener directory


@pytest.mark.parametrize(
    "written", ["{config-dir}/my", "{lucee-config}/my", "my", "./my/", "{config-dir}/x/../my"]
)
def test_path_in_the_file_starts_from_the_file_folder(tmp_path: Path, written: str) -> None:
    (tmp_path / "etc" / "my").mkdir(parents=True)
    (tmp_path / "etc" / "ws.json").write_text(json.dumps({"directory": written}))
    settings = load_settings("etc/ws.json", {}, {}, tmp_path)
    assert settings.directory == tmp_path / "etc" / "my"


def test_other_paths_start_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "etc" / "mine").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    config_file, mine = "etc/ws.json", tmp_path / "mine"
    by_variable = {"WSMIDDLEWARE_DIRECTORY": "mine"}
    assert load_settings(config_file, {}, by_variable, tmp_path).directory == mine
    assert load_settings(config_file, {"directory": "mine"}, {}, tmp_path).directory == mine
    assert load_settings(config_file, {"listeners": mine}, {}, "/").directory == mine
    by_keyword = {"listeners": "{config-dir}/mine"}
    assert load_settings(config_file, by_keyword, {}, tmp_path).directory == tmp_path / "etc/mine"


@pytest.mark.parametrize("is_in_file", [True, False])
def test_folders_of_the_system_and_the_user_have_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_file: bool
) -> None:
    for folder in ("temp", "home", "temp/ws", "home/ws"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    for word in ("temp", "home"):
        value = {"directory": f"{{{word}-directory}}/ws"}
        (tmp_path / "ws.json").write_text(json.dumps(value if is_in_file else {}))
        settings = load_settings("ws.json", {} if is_in_file else value, {}, tmp_path)
        assert settings.directory == tmp_path / word / "ws"
    with pytest.raises(ConfigError, match=r"\{no-directory\}/ws does not exist"):
        load_settings(False, {"directory": "{no-directory}/ws"}, {}, tmp_path)


def test_config_dir_is_the_current_directory_without_a_file(cwd: Path) -> None:
    assert load_settings(False, {}, {}, cwd).directory == cwd / "websockets"


def test_missing_default_directory_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_settings(False, {}, {}, tmp_path).directory == tmp_path / "websockets"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert f"{tmp_path}/websockets does not exist" in record.getMessage()


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"file": {"directory": "nowhere"}}, '{cwd}/websocket.json: "directory"'),
        (
            {"environ": {"WSMIDDLEWARE_DIRECTORY": "nowhere"}},
            "environment variable WSMIDDLEWARE_DIRECTORY",
        ),
        ({"directory": "nowhere"}, "keyword argument directory"),
        ({"listeners": "nowhere"}, "keyword argument listeners"),
    ],
)
def test_missing_configured_directory_is_refused(
    cwd: Path, given: dict[str, Any], place: str
) -> None:
    place = place.replace("{cwd}", str(cwd))
    expected = f"{place}: the listener directory {cwd}/nowhere does not exist"
    assert refusal(cwd, **given) == expected


def test_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "websockets").touch()
    assert refusal(tmp_path) == (
        f"the default: the listener directory {tmp_path}/websockets is not a directory"
    )


def test_listeners_and_directory_together_are_refused(cwd: Path) -> None:
    message = refusal(cwd, listeners="a", directory="b")
    assert message.startswith("listeners ('a') and directory ('b') are two words for one setting")


def test_listeners_none_counts_as_not_given(cwd: Path) -> None:
    (cwd / "mine").mkdir()
    assert load(cwd, listeners=None, directory="mine").directory == cwd / "mine"
