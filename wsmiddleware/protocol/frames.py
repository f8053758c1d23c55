"""Frames and close codes: the registries of RFC 6455 section 11 and the way out to the wire.

Everything here is a value or a pure function; reading frames is the engine's work.
"""

from __future__ import annotations

import secrets
from enum import IntEnum
from typing import TypeAlias

from .masking import apply_mask

__all__ = [
    "MAX_CONTROL_SIZE",
    "CloseCode",
    "Opcode",
    "ProtocolViolation",
    "Wire",
    "close_arguments",
    "close_code",
    "close_payload",
    "encode_frame",
    "is_receivable_close_code",
    "make_header",
    "to_payload",
    "too_big",
]

MAX_CONTROL_SIZE = 125
"""Payload bytes a control frame may carry (RFC 6455 section 5.5)."""


Wire: TypeAlias = bytes | tuple[bytes, bytes | memoryview]
"""A message as it goes over the wire: one piece, or header and payload apart where it is large."""


class Opcode(IntEnum):
    """What a frame is (RFC 6455 section 11.8)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """Why a connection ends (RFC 6455 section 11.7, IANA), with Lucee's names as aliases."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RCVD = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015

    CANNOT_ACCEPT = 1003
    NO_STATUS_CODE = 1005
    CLOSED_ABNORMALLY = 1006
    NOT_CONSISTENT = 1007
    VIOLATED_POLICY = 1008
    TOO_BIG = 1009
    NO_EXTENSION = 1010
    UNEXPECTED_CONDITION = 1011
    TLS_HANDSHAKE_FAILURE = 1015


class ProtocolViolation(Exception):
    """The peer broke a rule; the engine turns it into a ``Fail`` event, it never leaves the room.

    ``code`` is what goes into the close frame, ``reason`` its text (at most 123 bytes).
    """

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def too_big() -> ProtocolViolation:
    """Make the violation of a message past the size limit."""
    return ProtocolViolation(CloseCode.MESSAGE_TOO_BIG, "message too big")


def close_code(value: CloseCode | int | str) -> int:
    """Give the number of a close code that an endpoint may send.

    ``value`` is a number (1000-1003, 1007-1014, 3000-4999) or a name of `CloseCode` in any case;
    anything else is a `ValueError` that says what is valid.
    """
    code: object = value
    if isinstance(value, str):
        code = CloseCode.__members__.get(value.upper())
    if isinstance(code, int) and is_receivable_close_code(code):
        return int(code)
    names = ", ".join(
        name for name, code in CloseCode.__members__.items() if is_receivable_close_code(code)
    )
    raise ValueError(
        f"close code {value!r} may not be sent; valid are 1000-1003, 1007-1014, 3000-4999 "
        f"and the names {names}"
    )


def close_arguments(code: CloseCode | int | str, reason: str) -> tuple[int, str]:
    """Give code and reason of a ``close(code, reason)``, as `close_code` and `close_payload` do.

    A text alone that is no code and no name is a reason, with 1000: ``close("bye")``, as in Lucee.
    One that looks like a name, or a number, is not taken for that: it is a `ValueError`.
    """
    if isinstance(code, str) and reason == "" and not _is_like_a_code(code):
        number, reason = int(CloseCode.NORMAL_CLOSURE), code
    else:
        number = close_code(code)
    close_payload(number, reason)
    return number, reason


def _is_like_a_code(text: str) -> bool:
    is_name = text.upper() in CloseCode.__members__
    return is_name or text.isnumeric() or (text.isidentifier() and (text.isupper() or "_" in text))


def is_receivable_close_code(code: int) -> bool:
    """Tell whether a close frame may carry ``code`` (RFC 6455 section 7.4, Autobahn group 7)."""
    # 1004 is reserved, 1005, 1006 and 1015 never go over the wire, 1016-2999 are unassigned.
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def close_payload(code: int, reason: str) -> bytes:
    """Build the payload of a close frame (RFC 6455 section 5.5.1).

    A ``reason`` that is no ``str``, that UTF-8 cannot encode or that has more than 123 bytes of it
    is a `ValueError`.
    """
    if not isinstance(reason, str):
        raise ValueError(f"close reason is {reason!r}; valid is a str")
    text = reason.encode()
    if len(text) > MAX_CONTROL_SIZE - 2:
        raise ValueError(f"close reason has {len(text)} bytes of UTF-8, at most 123 fit a frame")
    return code.to_bytes(2, "big") + text


def encode_frame(
    opcode: int,
    payload: bytes,
    *,
    fin: bool = True,
    rsv1: bool = False,
    masked: bool = False,
) -> bytes:
    """Give one frame as wire bytes (RFC 6455 section 5.2); ``masked`` is the client's form.

    Checks nothing: which frames make sense when is the caller's knowledge.
    """
    header = make_header(opcode, len(payload), fin=fin, rsv1=rsv1, masked=masked)
    if not masked:
        return header + payload
    # Section 10.3: the key must be unpredictable, so that no script chooses bytes on the wire.
    key = secrets.token_bytes(4)
    return header + key + apply_mask(payload, key)


def make_header(
    opcode: int, size: int, *, fin: bool = True, rsv1: bool = False, masked: bool = False
) -> bytes:
    """Give the header of a frame with a payload of `size` bytes, without the masking key."""
    first = (fin << 7) | (rsv1 << 6) | opcode
    second = masked << 7
    if size < 126:
        return bytes((first, second | size))
    if size < 65536:
        return bytes((first, second | 126)) + size.to_bytes(2, "big")
    return bytes((first, second | 127)) + size.to_bytes(8, "big")


def to_payload(data: str | bytes | bytearray | memoryview) -> bytes:
    """Give a message's payload: UTF-8 of a ``str``, a copy of what may change, ``bytes`` as is.

    A lone surrogate is a `UnicodeEncodeError` (a `ValueError`), another type a `TypeError`.
    """
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"a message is str or bytes-like, not {type(data).__name__}")
