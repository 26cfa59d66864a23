"""What passes the gate of the web demo, with an application behind it that says yes to all."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from segtune.webdemo import gate
from segtune.webdemo.gate import Gate


async def yes(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body that it was sent."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(folder: Path, method: str, path: str, *parts: bytes, length: int | None = None) -> tuple[int, bytes]:
    """The status and the body of the answer; 0 where there is none."""
    said = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": said}
    waiting = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ] or [{"type": "http.request", "body": b"", "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Gate(yes, folder, 100)(scope, receive, send))
    return (sent[0]["status"], sent[1]["body"]) if sent else (0, b"")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/config", 200),
        ("GET", "/assets/index.js", 200),
        ("GET", "/gradio_api/info", 200),
        ("GET", "/gradio_api/queue/data", 200),
        ("GET", "/gradio_api/call/predict/0123abc", 200),
        ("POST", "/gradio_api/call/predict", 200),
        ("POST", "/gradio_api/queue/join", 200),
        ("GET", "/docs", 404),
        ("GET", "/gradio_api/proxy=https://example.org/a", 404),
        ("GET", "/monitoring", 404),
        ("GET", "/gradio_api/deep_link", 404),
        ("POST", "/gradio_api/component_server", 404),
        ("POST", "/gradio_api/vibe-edit", 404),
        ("POST", "/gradio_api/process_recording", 404),
        ("POST", "/gradio_api/run-history/connect", 404),
        ("PUT", "/", 404),
    ],
)
def test_only_what_the_demo_needs_is_open(tmp_path: Path, method: str, path: str, status: int) -> None:
    assert ask(tmp_path, method, path)[0] == status


def test_files_of_the_folder_alone_are_served(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "out").symlink_to(tmp_path)
    names = [
        tmp_path / "secret.txt",
        f"{folder}/../secret.txt",
        folder / "out" / "secret.txt",
        "/etc/passwd",
        "secret.txt",
        "http://example.org/a.png",
        "a\0b",
    ]
    assert ask(folder, "GET", f"/gradio_api/file={folder}/a.png")[0] == 200
    assert [ask(folder, "GET", f"/gradio_api/file={name}")[0] for name in names] == [403] * len(names)


def test_calls_name_files_of_the_folder_alone(tmp_path: Path) -> None:
    def call(name: object) -> tuple[int, bytes]:
        content = {"data": [[{"deep": {"path": name, "meta": {"_type": "gradio.FileData"}}}, 1, None]]}
        return ask(tmp_path, "POST", "/gradio_api/call/predict", json.dumps(content).encode())

    status, body = call(f"{tmp_path}/a/b.png")
    assert status == 200 and f"{tmp_path}/a/b.png" in body.decode()  # the call arrives as it was
    names = ["/etc/passwd", f"{tmp_path}/../x.png", "https://example.org/a.png", "file:///etc/passwd", "a.png", 7]
    assert [call(name)[0] for name in names] == [403] * len(names)


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff"])
def test_a_call_that_is_no_json_is_refused(tmp_path: Path, body: bytes) -> None:
    assert ask(tmp_path, "POST", "/gradio_api/queue/join", body)[0] == 400


def test_large_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what they say of themselves, before a byte is read, and by what they are."""
    assert ask(tmp_path, "POST", "/gradio_api/upload", b"a" * 100, length=100)[0] == 200
    status, body = ask(tmp_path, "POST", "/gradio_api/upload", length=101)
    assert status == 413 and json.loads(body) == {"detail": "the upload is larger than 0 MB"}
    assert ask(tmp_path, "POST", "/gradio_api/upload", b"a" * 60, b"a" * 60)[0] == 0  # cut off
    monkeypatch.setattr(gate, "LARGEST_CALL", 20)
    assert ask(tmp_path, "POST", "/gradio_api/queue/join", b'"' + b"a" * 18 + b'"', length=20)[0] == 200
    assert ask(tmp_path, "POST", "/gradio_api/queue/join", b"", length=21)[0] == 413
    assert ask(tmp_path, "POST", "/gradio_api/queue/join", b"a" * 11, b"a" * 11)[0] == 413


def test_every_answer_forbids_what_comes_from_elsewhere(tmp_path: Path) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    for path in ("/", "/docs"):
        asyncio.run(
            Gate(yes, tmp_path, 100)({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
        )
    starts = [dict(message["headers"]) for message in sent if message["type"] == "http.response.start"]
    assert [b"default-src 'self'" in headers[b"content-security-policy"] for headers in starts] == [True, True]
