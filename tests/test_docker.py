"""The example's Dockerfile, step by step without an engine: its folders lie in a temporary one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from support import PATIENCE, ROOT, Server, wait_until
from support.servers import environment

DOCKERFILE = ROOT / "example_flask_app" / "Dockerfile"
INSTRUCTIONS: list[list[str]] = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n\s*|^#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.M).split("\n")
    if line
]
IGNORED = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text("utf-8").split()


def argument(instruction: str) -> str:
    """What stands behind the last instruction of this name."""
    return [rest for name, rest in INSTRUCTIONS if name == instruction][-1]


#: Where the tests run under the image's own Python, packages are installed as in the image.
INSTALLS = argument("FROM").startswith("python:{}.{}-".format(*sys.version_info))


@dataclass
class Image:
    """What the instructions have made so far."""

    root: Path
    python: Path
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"

    def path(self, name: str) -> Path:
        """A path of the image, where it lies here."""
        return self.root / os.path.join(self.workdir, name).lstrip("/")

    def command(self, words: list[str]) -> list[str]:
        """With the image's Python; its scripts lie beside it, if anywhere."""
        program, *rest = words
        return [str(self.python), *([] if program == "python" else ["-m", program]), *rest]

    def environ(self) -> dict[str, str]:
        inherited = environment(self.root)
        if INSTALLS:
            del inherited["PYTHONPATH"]
        # A path of the image is one below its root here.
        values = {k: str(self.path(v)) if v.startswith("/") else v for k, v in self.env.items()}
        return {**inherited, **values}

    def run(self, words: list[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(words),
            cwd=self.path(""),
            env=self.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def build(self) -> None:
        """Follows the instructions."""
        steps: dict[str, Callable[[str], None]] = {
            "WORKDIR": self.enter,
            "COPY": self.copy,
            "ENV": lambda rest: self.env.update(pair.split("=", 1) for pair in shlex.split(rest)),
            "RUN": self.run_step,
        }
        for name, rest in INSTRUCTIONS:
            steps.get(name, lambda rest: None)(rest)

    def enter(self, folder: str) -> None:
        self.workdir = folder
        self.path("").mkdir(parents=True, exist_ok=True)

    def copy(self, rest: str) -> None:
        if rest.startswith("--from="):
            return  # the stages share their folders here
        *sources, target = rest.split()
        for source in sources:
            assert f"!{source}" in IGNORED  # else it would not be sent to the engine
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, self.path(target), ignore=left, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, self.path(target))

    def run_step(self, rest: str) -> None:
        words = shlex.split(rest)
        if words[0].startswith("--mount="):
            lent = dict(
                part.split("=") for part in words.pop(0).removeprefix("--mount=").split(",")
            )
            source = str(self.path(lent["source"]))
            words = [source if word == lent["target"] else word for word in words]
        if words[0] == "pip" and not INSTALLS:
            return
        result = self.run(words)
        assert result.returncode == 0, result.stdout


def left(folder: str, names: list[str]) -> set[str]:
    """What of a folder stays behind."""
    patterns = [pattern.removeprefix("**/") for pattern in IGNORED if pattern.startswith("**/")]
    return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    root = tmp_path_factory.mktemp("image")
    python = Path(sys.executable)
    if INSTALLS:
        venv.create(root / "python", with_pip=True)
        python = root / "python" / "bin" / "python"
    image = Image(root, python)
    image.path("/tmp").mkdir()
    image.build()
    return image


@pytest.fixture
def started(image: Image, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Image]:
    """`docker run --env …`: the image with these variables beside its own."""

    def started(**variables: str) -> Image:
        monkeypatch.setattr(image, "env", {**image.env, **variables})
        return image

    return started


@pytest.mark.parametrize("variable", ["PORT", "GUNICORN_CMD_ARGS"])
def test_image_serves_says_that_it_is_well_and_ends_in_time(
    started: Callable[..., Image], variable: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    value = str(port) if variable == "PORT" else f"--bind 127.0.0.1:{port}"
    image = started(**{"SECRET_KEY": "given", variable: value})
    image.path("/tmp/url").unlink(missing_ok=True)
    check = json.loads(argument("HEALTHCHECK").split("CMD ", 1)[1])
    assert image.run(check).returncode != 0  # nobody is there yet
    file = image.root / "console"
    with file.open("w") as console:
        process = subprocess.Popen(
            image.command(json.loads(argument("CMD"))),
            cwd=image.path(""),
            env=image.environ(),
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "Listening at" in file.read_text(), file.read_text)
        wait_until(lambda: image.run(check).returncode == 0, file.read_text)
        with Server(port).connect("/ws/test") as ws:
            assert ws.recv(5) == "Welcome"
            process.send_signal(signal.SIGTERM)  # what `docker stop` sends
            with pytest.raises(ConnectionClosed):
                ws.recv(5)
            assert ws.close_code == 1001
        assert process.wait(PATIENCE) == 0  # what `docker stop` waits
    finally:
        process.kill()
        process.wait()
    for line in ("open, channel test", "closed, channel test", "GET /health"):
        assert line in file.read_text()


def test_user_is_not_root_and_no_shell_stands_before_the_server() -> None:
    user, group = argument("USER").split(":")
    assert int(user) > 0 < int(group)
    assert isinstance(json.loads(argument("CMD")), list)


@pytest.mark.parametrize("given", [{}, {"SECRET_KEY": ""}])
def test_start_without_a_key_is_refused(
    started: Callable[..., Image], given: dict[str, str]
) -> None:
    result = started(**given, PORT="0").run(json.loads(argument("CMD")), PATIENCE)
    assert result.returncode != 0
    assert result.stdout.count("set it to what `openssl rand -hex 32` prints") == 1
    assert "Traceback" not in result.stdout


def test_wheels_are_lent_and_not_kept() -> None:
    last_stage = INSTRUCTIONS[
        max(i for i, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :
    ]
    kept = [rest for name, rest in last_stage if name in ("COPY", "ADD") and "wheels" in rest]
    [install] = [rest for name, rest in last_stage if name == "RUN" and "pip install" in rest]
    assert kept == []
    assert install.startswith("--mount=type=bind,from=build,source=/src/wheels,target=/wheels ")


def test_settings_come_from_the_environment_alone(started: Callable[..., Image]) -> None:
    image = started(WSMIDDLEWARE_IDLE_TIMEOUT="soon", SECRET_KEY="given")
    result = image.run(["python", "-m", "wsmiddleware", "check", "app:app"])
    assert "WSMIDDLEWARE_IDLE_TIMEOUT" in result.stdout
    assert result.returncode == 1


def test_page_says_how_to_build_it() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert f"docker build --tag live --file {DOCKERFILE.relative_to(ROOT)} ." in page
