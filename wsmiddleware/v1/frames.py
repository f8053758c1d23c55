"""Frames of ``wsmiddleware.v1``: JSON texts whose ``type`` says what they are.

From the server: ``hello`` first of all, ``joined`` for a group, ``message``, ``reset``. From the
client: a position, in the URL's ``since``.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any, NamedTuple

from wsmiddleware.backplane.engine import Position
from wsmiddleware.backplane.envelope import Envelope, Kind

__all__ = ["Message", "Since", "hello", "joined", "parse_since", "reset"]

#: Characters of a session id in ``since``.
_MAX_SESSION = 64


# -- from the client -------------------------------------------------------------------------------


class Since(NamedTuple):
    """Where a client stood, and the id that its session had."""

    position: Position
    session: str = ""


def parse_since(text: str) -> Since | None:
    """Read ``EPOCH:OFFSET[:SESSION]``; `None` for all else. Bounded, and never raises."""
    epoch, _, rest = text[:120].partition(":")
    offset, _, session = rest.partition(":")
    position = Position.parse(f"{epoch}:{offset}")
    if position is None or len(session) > _MAX_SESSION or not session.isascii():
        return None
    return Since(position, session)


# -- from the server -------------------------------------------------------------------------------


def hello(
    session: str, position: Position | None, *, is_recovered: bool | None = None, **more: object
) -> str:
    """The first frame; `more` is what else it tells. With history `is_recovered` is a `bool`."""
    return _frame("hello", session=session, **more, **_place(position, is_recovered))


def joined(group: str, position: Position | None, *, is_recovered: bool | None = None) -> str:
    """The client is in a group."""
    return _frame("joined", group=group, **_place(position, is_recovered))


def reset(group: str, position: Position) -> str:
    """What the client has and what is stored differ; it is in step again from `position` on."""
    return _frame("reset", **_of(group), epoch=position.epoch, offset=position.offset)


class Message:
    """A message for v1 clients, each form encoded once, when it is first asked for."""

    __slots__ = ("_forms", "envelope")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self._forms: dict[str, str] = {}

    def frame(self, epoch: str = "") -> str:
        """The frame; with `epoch` for a client that has to be told of a new one."""
        form = self._forms.get(epoch)
        if form is None:
            form = self._forms[epoch] = self._encode(epoch)
        return form

    def _encode(self, epoch: str) -> str:
        _, kind, payload, *_ = self.envelope
        fields: dict[str, object] = _of(self.envelope.subject.group)
        if self.envelope.position is not None:
            fields["offset"] = self.envelope.position.offset
        if epoch:
            fields["epoch"] = epoch
        if kind is Kind.BYTES:
            return _frame("message", **fields, base64=b64encode(payload).decode())
        text = payload.decode("utf-8", "replace")
        # JSON stands as it is: it is not read only to be written again.
        data = text if kind is Kind.JSON else json.dumps(text, ensure_ascii=False)
        return f'{_frame("message", **fields)[:-1]},"data":{data}}}'


def _frame(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields}, separators=(",", ":"))


def _of(group: str) -> dict[str, Any]:
    return {"group": group} if group else {}


def _place(position: Position | None, is_recovered: bool | None) -> dict[str, object]:
    fields: dict[str, object] = {}
    if position is not None:
        fields = {"epoch": position.epoch, "offset": position.offset}
    if is_recovered is not None:
        fields["recovered"] = is_recovered
    return fields
