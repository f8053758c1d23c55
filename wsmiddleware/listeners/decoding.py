"""``decode = "json"``: `on_message` gets what a text says, not the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wsmiddleware.log import log as _log
from wsmiddleware.protocol.frames import CloseCode

if TYPE_CHECKING:
    from wsmiddleware.listeners.clients import WsClient

__all__ = ["Decoding"]


class Decoding:
    """A listener whose `on_message` gets decoded text; binary is `bytes` as always.

    What does not parse is raised for `on_error` (`is_told`), or closes with 1007.
    """

    __slots__ = ("_is_told", "_listener", "_loads")

    def __init__(self, listener: Any, loads: Callable[[str], Any], *, is_told: bool) -> None:
        self._listener = listener
        self._loads = loads
        self._is_told = is_told

    def on_message(self, wsclient: WsClient, message: Any) -> Any:
        """Decode and hand on."""
        if type(message) is str:
            try:
                message = self._loads(message)
            except Exception as exc:
                if self._is_told:
                    raise
                _log.info("%s: closed with 1007: a message is no JSON: %s", wsclient.id, exc)
                wsclient.close(CloseCode.INVALID_DATA, "no JSON")
                return None
        return self._listener.on_message(wsclient, message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)
