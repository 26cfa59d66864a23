"""The server as programs see it: one endpoint, the masks of `segtune predict`, and nothing else of this machine.

It runs in a process of its own (`running`): Gradio leaves event loops and sockets unclosed, which are errors here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segtune
from segtune.errors import UsageError
from segtune.webdemo import server
from segtune.webdemo.server import listen, name_of, remove_old
from support.demo_server import Running, environment

CLIENT = """
import json, sys
from gradio_client import Client, handle_file
url, folder, *pictures = sys.argv[1:]
client = Client(url, verbose=False, analytics_enabled=False, download_files=folder)
said = {"api": client.view_api(return_format="dict", print_info=False), "answers": []}
for picture in pictures:
    try:
        said["answers"].append(client.predict(image=handle_file(picture) if picture else None, api_name="/predict"))
    except Exception as error:
        said["answers"].append(str(error))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(running: Running, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program is told: of the interface, a picture, a text, no picture, a file that is too large."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "a.png").write_bytes(b"no picture")
    with (folder / "large.png").open("wb") as file:
        file.truncate(2**20 + 1)
    pictures = [str(photo), str(folder / "a.png"), "", str(folder / "large.png")]
    command = [sys.executable, "-W", "ignore", "-c", CLIENT, running.url, str(folder), *pictures]
    variables = environment(folder) | {"NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def fetch(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """The status of an answer, and what it says; no proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data, headers or {}), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.slow
def test_a_program_gets_the_mask_of_predict_and_its_classes(
    said: dict[str, Any], checkpoint: Path, photo: Path
) -> None:
    mask, about = said["answers"][0]
    expected = segtune.predict(checkpoint, photo, device="cpu")
    with Image.open(mask) as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), expected)
        palette = picture.getpalette()
    colors = segtune.LabelMap.from_pretrained(checkpoint).colors
    assert palette is not None and palette[:9] == [value for color in colors for value in color]
    assert (about["name"], about["height"], about["width"], about["protocol"]) == ("photo.png", 96, 128, "whole")
    shares = {item["id"]: item["share"] for item in about["classes"]}
    ids, counts = np.unique(expected, return_counts=True)
    assert shares == pytest.approx(dict(zip(ids.tolist(), (counts / expected.size).tolist(), strict=True)))


@pytest.mark.slow
def test_there_is_one_endpoint_and_it_is_described(said: dict[str, Any]) -> None:
    described = said["api"]
    assert list(described["named_endpoints"]) == ["/predict"] and described["unnamed_endpoints"] == {}
    endpoint = described["named_endpoints"]["/predict"]
    assert [parameter["parameter_name"] for parameter in endpoint["parameters"]] == ["image"]
    assert [value["label"] for value in endpoint["returns"]] == ["mask", "about"]


@pytest.mark.slow
def test_what_is_wrong_is_one_line(said: dict[str, Any]) -> None:
    assert said["answers"][1:3] == [
        "a.png: cannot be read (it is no picture, or of an unknown format)",
        "there is no picture yet: choose one",
    ]


@pytest.mark.slow
def test_large_files_are_refused(said: dict[str, Any], running: Running) -> None:
    assert "413" in said["answers"][3] or "maximum" in said["answers"][3]
    address, length = f"{running.url}/gradio_api/upload", {"Content-Length": str(200 * 2**20)}
    assert fetch(address, b"", length | {"Content-Type": "multipart/form-data; boundary=a"})[0] == 413


@pytest.mark.slow
def test_no_other_file_is_reachable(running: Running, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    up = "/".join([".."] * 12)
    folder, outside = running.folder, "http://127.0.0.1:9/a.png"
    for name in (secret, f"{folder}/{up}{secret}", f"{folder}%2F{up}{secret}", f"{folder}/%2e%2e/log", outside):
        assert fetch(f"{running.url}/gradio_api/file={name}")[0] == 403
    for path in (str(secret), f"{folder}/{up}{secret}", f"{folder}/../log", outside):
        call = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        for place in ("call/predict", "call/v2/predict", "run/predict", "queue/join"):
            address = f"{running.url}/gradio_api/{place}"
            status, body = fetch(address, json.dumps(call).encode(), {"Content-Type": "application/json"})
            assert (status, json.loads(body)["detail"].split(":")[0]) == (403, "a call names uploaded pictures only")
    for path in ("docs", "openapi.json", "monitoring/summary", "gradio_api/proxy=http://127.0.0.1:9/a"):
        assert fetch(f"{running.url}/{path}")[0] == 404


@pytest.mark.slow
def test_page_asks_for_nothing_outside(running: Running) -> None:
    status, page = fetch(running.url)
    assert status == 200 and b"run/best: segtune demo" in page
    assert b"fonts.googleapis" not in page and b"cdnjs" not in page


@pytest.mark.slow
def test_in_a_notebook(checkpoint: Path, tmp_path: Path) -> None:
    """The call comes back, the page answers, `close` leaves neither files nor settings; Gradio's own check is on."""
    script = """
        import os, sys, urllib.request
        from pathlib import Path
        from segtune.webdemo import server
        os.environ["GRADIO_TEMP_DIR"] = "before"
        made = []
        mount = server._application
        server._application = lambda blocks, largest: made.append(blocks) or mount(blocks, largest)
        with server.demo(sys.argv[1], port=0, device="cpu") as running:
            assert repr(running) == f"<segtune demo at {running.url}>"
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            assert opener.open(running.url, timeout=30).status == 200
            assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
            assert Path(os.environ["GRADIO_TEMP_DIR"]) == running.folder
            from gradio import processing_utils
            from gradio.context import LocalContext
            LocalContext.blocks.set(made[0])
            try:
                processing_utils._check_allowed(sys.argv[1] + "/config.json", check_in_upload_folder=True)
            except ValueError as error:
                assert "not uploaded" in str(error)
            else:
                sys.exit("a file that was not uploaded is taken")
        assert not running.folder.exists()
        assert os.environ["GRADIO_TEMP_DIR"] == "before" and "GRADIO_ANALYTICS_ENABLED" not in os.environ
        try:
            server.demo(sys.argv[1], port=0, device="cpu", examples=["nowhere.jpg"])
        except server.UsageError as error:
            print(error)
    """
    variables = {key: value for key, value in environment(tmp_path).items() if not key.startswith("GRADIO_")}
    command = [sys.executable, "-c", textwrap.dedent(script), str(checkpoint)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("example nowhere.jpg: no such file\n", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^port {port} is in use on 127\.0\.0\.1: name another one, or 0"):
            listen("127.0.0.1", port)
        monkeypatch.setattr(server, "PORTS", range(port, port + 1))
        with pytest.raises(UsageError, match=f"^port {port} to {port} are in use"):
            listen("127.0.0.1", None)
    for host in ("no such host", "203.0.113.7"):  # of documentation: no machine has it
        with pytest.raises(UsageError, match=f"^nothing can listen at {host}, port 0 "):
            listen(host, 0)


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roads" / "best").mkdir(parents=True)
    assert name_of(tmp_path / "roads" / "best") == "roads/best"
    assert name_of(tmp_path / "roads") == "roads"
    assert name_of("tester/tiles@v2") == "tester/tiles@v2"
    monkeypatch.chdir(tmp_path / "roads" / "best")
    assert name_of(".") == "roads/best"


def test_old_files_are_removed(tmp_path: Path) -> None:
    for name, age in (("old", 100), ("new", 10), ("examples", 100)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    remove_old(tmp_path, 950)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "examples"}
