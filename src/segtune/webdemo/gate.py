"""The gate of the web demo: what of Gradio's server is reachable, and how large a request may be (plain ASGI).

Gradio serves more than the demo needs: a proxy, fetching of addresses that a call names, monitoring, recording. Only
what `OPEN` lists passes. Files are those of the demo's own folder, whether an address asks for them or a call names
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

API = "/gradio_api"
OPEN = {
    "GET": re.compile(
        rf"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/pwa_icon(/\d+)?|/(assets|static|svelte)/.+"
        rf"|{API}/(info|openapi\.json|app_id|token|user|login_check|startup-events|theme\.css|queue/(data|status))/?"
        rf"|{API}/(upload_progress|heartbeat/\w+|call/\w+/\w+|file=.+)"
    ),
    "POST": re.compile(rf"{API}/(upload|queue/join|cancel|reset|run/\w+|call/\w+|call/v2/\w+)/?"),
}
FILE = f"{API}/file="
UPLOAD = f"{API}/upload"
LARGEST_CALL = 2**20  # bytes of a call, in which pictures are named, not sent
# Nothing is loaded from elsewhere, whatever a version of Gradio asks for.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Gate:
    """An ASGI application in front of another one.

    Args:
        folder: the only one whose files are served, and may be named.
        largest_upload: bytes of a request that sends files.
    """

    def __init__(self, app: Application, folder: Path, largest_upload: int) -> None:
        self.app, self.folder, self.largest_upload = app, folder.resolve(), largest_upload

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_headers(send))

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        known = OPEN.get("GET" if method == "HEAD" else method)
        if known is None or known.fullmatch(path) is None:
            await _refuse(send, 404, "not found")
        elif path.startswith(FILE) and not self._is_ours(path.removeprefix(FILE)):
            await _refuse(send, 403, "no file of this demo")
        elif method != "POST":
            await self.app(scope, receive, send)
        elif path.startswith(UPLOAD):
            await self._upload(scope, receive, send)
        else:
            await self._call(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        """Whether a path lies in the folder; an address never does."""
        try:
            return Path(name).resolve().is_relative_to(self.folder)
        except (OSError, ValueError, RuntimeError):  # a name that no file has
            return False

    async def _upload(self, scope: Message, receive: Receive, send: Send) -> None:
        text = f"the upload is larger than {self.largest_upload / 2**20:,.0f} MB"
        if _length(scope) > self.largest_upload:
            await _refuse(send, 413, text)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= self.largest_upload else {"type": "http.disconnect"}

        await self.app(scope, counted, send)

    async def _call(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes a call on when it names no files but uploaded ones."""
        body = b""
        more = _length(scope) <= LARGEST_CALL
        if not more:
            await _refuse(send, 413, "the call is too long: upload pictures, then name them")
            return
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > LARGEST_CALL:
                await _refuse(send, 413, "the call is too long: upload pictures, then name them")
                return
        try:
            content = json.loads(body or b"null")
        except (ValueError, RecursionError):
            await _refuse(send, 400, "the call is no JSON")
            return
        if any(not self._is_ours(name) for name in _named(content)):
            await _refuse(send, 403, "a call names uploaded pictures only: upload this one (gradio_client.handle_file)")
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, again, send)


def _named(content: Any) -> Iterator[str]:
    """The files that a call names, however deep."""
    todo = [content]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            if item.get("path") is not None:
                yield unquote(str(item["path"])) if "%" in str(item["path"]) else str(item["path"])
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)


def _length(scope: Message) -> int:
    """Bytes that a request says it has; 0 where it does not."""
    given = dict(scope["headers"]).get(b"content-length", b"0")
    return int(given) if given.isdigit() else 0


def _with_headers(send: Send) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return add


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
