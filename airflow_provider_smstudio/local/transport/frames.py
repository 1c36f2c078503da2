"""Websocket frames, as far as needed to distinguish messages from control frames (ping, pong, close)."""

from __future__ import annotations

from collections.abc import Iterator

_EXTRA_LENGTH = {126: 2, 127: 8}
_CONTROL = 0x08


class FrameSplitter:
    """Cuts a stream of frames into pieces, so that each piece belongs to one frame.

    A payload passes in the pieces in which it arrives. Only the head of a frame (at most 14 bytes) waits until it
    is complete.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self._control = False

    def feed(self, data: bytes) -> Iterator[tuple[bool, bool, bytes]]:
        """Yield the pieces of the next bytes of the stream.

        :return: for each piece: whether it is part of a control frame (ping, pong, close), whether it is the start
            of its frame, and its bytes.
        """
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                yield self._control, False, piece
                continue
            missing = self._missing()
            self._head += data[at : at + missing]
            at += missing
            if not self._missing():
                yield self._begin()

    def _missing(self) -> int:
        """Return how many bytes of the current head are still missing, as far as is known."""
        if len(self._head) < 2:
            return 2 - len(self._head)
        mask = 4 if self._head[1] & 0x80 else 0
        return 2 + _EXTRA_LENGTH.get(self._head[1] & 0x7F, 0) + mask - len(self._head)

    def _begin(self) -> tuple[bool, bool, bytes]:
        head = bytes(self._head)
        self._head.clear()
        short = head[1] & 0x7F
        extra = _EXTRA_LENGTH.get(short, 0)
        self._left = int.from_bytes(head[2 : 2 + extra], "big") if extra else short
        self._control = bool(head[0] & _CONTROL)
        return self._control, True, head
