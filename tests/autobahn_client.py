"""The client against the Autobahn testsuite's fuzzing server (``wstest -m fuzzingserver``).

    python tests/autobahn_client.py ws://127.0.0.1:9001

Runs every case that the server has, as an echo, and asks it to write its reports. Exit status 1
where a case was not even connected; the verdicts are in the server's reports.
"""

from __future__ import annotations

import sys

from wsmiddleware import HandshakeError, create_websocket_client
from wsmiddleware.client import WebSocketClient

__all__ = ["main"]

_AGENT = "wsmiddleware"
#: Bytes; the largest message of the suite's group 9.
_MAX_MESSAGE_SIZE = 16 * 2**20
#: Seconds for one case; those of groups 9, 12 and 13 send thousands of messages.
_CASE_TIMEOUT = 120.0


class Echo:
    """Sends back what comes."""

    client: WebSocketClient

    def on_message(self, message: str) -> None:
        self.client.send_text(message)

    def on_binary_message(self, binary: bytes) -> None:
        self.client.send_binary(binary)

    def on_error(self, type: str, cause: BaseException) -> None:
        """Most cases are errors on purpose; the suite judges what follows."""


class Collect:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_message(self, message: str) -> None:
        self.messages.append(message)


def run_case(server: str, number: int) -> None:
    """One case, to its end."""
    echo = Echo()
    url = f"{server}/runCase?case={number}&agent={_AGENT}"
    echo.client = create_websocket_client(url, echo, max_message_size=_MAX_MESSAGE_SIZE)
    if not echo.client.wait(_CASE_TIMEOUT):
        echo.client.disconnect()


def main(server: str) -> int:
    """All cases of the fuzzing server at this URL."""
    counted = Collect()
    create_websocket_client(f"{server}/getCaseCount", counted).wait(10)
    failures = 0
    for number in range(1, int(counted.messages[0]) + 1):
        try:
            run_case(server, number)
        except HandshakeError as exc:
            print(f"case {number}: {exc}", file=sys.stderr)
            failures += 1
    create_websocket_client(f"{server}/updateReports?agent={_AGENT}", object()).wait(60)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/")))
