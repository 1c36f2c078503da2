"""Opens a notebook in a room of a collaborative space, as its page in the browser does.

Run by an image's own Python, with the server's URL and the notebook's path. Without a room, it says ``no room`` and
ends; else it says ``open``, adds each line that it is given to the first Markdown cell and says ``typed``, and leaves
at the end of the lines. Its last word is the cell as the room shows it then.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

SYNC = 0


async def ask(method: str, url: str, body: str = "") -> dict[str, Any] | None:
    """Make a request; return None for an answer that is an error."""
    headers = {"Cookie": "_xsrf=abcd", "X-XSRFToken": "abcd", "Content-Type": "application/json"}
    request = HTTPRequest(url, method, headers, body)
    answer = await AsyncHTTPClient().fetch(request, raise_error=False)
    return dict(json.loads(answer.body)) if answer.code in (200, 201) else None


async def room_of(server: str, path: str) -> str | None:
    """Return where a notebook's room is, None where there are no rooms.

    An image may hold both makers of rooms; jupyter_server_documents, which has no sessions, then is the one.
    """
    api = server.rstrip("/") + "/api"
    room = "ws" + api.removeprefix("http") + "/collaboration/room/json:notebook:"
    if found := await ask("POST", f"{api}/fileid/index?path={quote(path)}"):
        return room + str(found["id"])
    kind = json.dumps({"format": "json", "type": "notebook"})
    if found := await ask("PUT", f"{api}/collaboration/session/{quote(path)}", kind):
        return f"{room}{found['fileId']}?sessionId={found['sessionId']}"
    return None


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


class Room:
    """A room, with what is shown of it.

    :ivar notebook: the document, as far as it is known.
    """

    def __init__(self) -> None:
        from jupyter_ydoc import YNotebook
        from pycrdt import Doc

        self._document: Doc[Any] = Doc()
        self.notebook = YNotebook(self._document)

    async def enter(self, url: str) -> bool:
        """Open it; return False when it has closed before it showed anything."""
        from pycrdt import create_sync_message

        self._socket = await websocket_connect(url, max_message_size=2**30)
        self._there = asyncio.Event()
        self._listening = asyncio.ensure_future(self._listen())
        await self._socket.write_message(create_sync_message(self._document), binary=True)
        await asyncio.wait_for(self._there.wait(), 20)
        return not self.closed

    async def _listen(self) -> None:
        from pycrdt import handle_sync_message

        while isinstance(message := await self._socket.read_message(), bytes):
            if message[0] == SYNC:
                reply = handle_sync_message(message[1:], self._document)
                if reply is not None:
                    await self._socket.write_message(reply, binary=True)
            if len(self.notebook.ycells):
                self._there.set()
        self._there.set()

    @property
    def closed(self) -> bool:
        return self._listening.done()

    @property
    def prose(self) -> Any:
        """The first Markdown cell's text."""
        (cell, *_) = (cell for cell in self.notebook.ycells if cell["cell_type"] == "markdown")
        return cell["source"]

    async def type(self, line: str) -> None:
        from pycrdt import create_update_message

        before, text = self._document.get_state(), self.prose
        text += line
        update = create_update_message(self._document.get_update(before))
        await self._socket.write_message(update, binary=True)

    def leave(self) -> None:
        self._socket.close()


async def stay(url: str) -> None:
    """Sit in a room."""
    room = Room()
    # A room reads the file when it opens, and closes at once where that is just half-written.
    while not await room.enter(url):
        await asyncio.sleep(0.3)
        room = Room()
    say("open")
    while line := (await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)).strip():
        await room.type(line)
        say("typed")
    say("thrown out" if room.closed else str(room.prose))
    room.leave()


async def main(server: str, path: str) -> None:
    try:
        import pycrdt  # noqa: F401
    except ImportError:  # images of version 1: rooms of another make, and in no private space
        room = None
    else:
        room = await room_of(server, path)
    if room is None:
        say("no room")
    else:
        await stay(room)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
