"""The server of the web demo: `demo`, which notebooks call, and `segtune demo`."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from segtune.engines.engine_network import Engine
from segtune.errors import SegtuneError, UsageError
from segtune.inference.device import Precision
from segtune.inference.open_network import open_network, precision_of
from segtune.inference.processor import load_processor
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap
from segtune.training.run_folder import BEST, FINAL
from segtune.webdemo.blocks import KEPT, Demo, build, import_gradio, looks
from segtune.webdemo.demo_examples import find_examples
from segtune.webdemo.gate import Gate
from segtune.webdemo.request import Limits

PORTS = range(7860, 7880)  # of which the first free one is taken
EXAMPLES = "examples"  # their folder
PATIENCE = 60.0  # seconds until the server answers
# Gradio reads these whenever it likes.
VARIABLES = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
FOLDERS = ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE")


def demo(
    checkpoint: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    tta: bool = False,
    batch_size: int = 1,
    device: str | None = None,
    precision: Precision = "auto",
    engine: Engine = "torch",
    examples: Sequence[str | os.PathLike[str]] | None = None,
    limits: Limits | None = None,
) -> DemoServer:
    """Serve a web page that segments pictures with a checkpoint, and the same for programs (the extra `demo`).

    Args:
        checkpoint: a folder such as `runs/demo/best`, or a Hub id.
        host: the address that is listened to; "0.0.0.0" is every network of this machine, for anybody in them.
        port: default is the first free one from 7860; 0 is any free one.
        window, stride, tta, batch_size, device, precision, engine: see `predict`. Where there is no window, neither
            given nor in the checkpoint, pictures of more than 2048² pixels are cut into windows of 1024.
        examples: pictures to try; default are those of the run that the checkpoint lies in.
        limits: of a request, see `Limits`.

    Returns:
        A server that runs in a thread until it is closed; `url` is its address.

    Raises:
        UsageError: no such checkpoint, device or window, the port is taken, or the package gradio is not installed.
    """
    import_gradio()
    with ExitStack() as failed:
        listening = failed.enter_context(closing(listen(host, port)))
        folder = Path(tempfile.mkdtemp(prefix="segtune-demo-")).resolve()
        failed.callback(shutil.rmtree, folder, ignore_errors=True)
        model = open_network(checkpoint, device, engine, precision).eval()
        precision_of(model, precision)  # refuses what the device cannot compute in
        processor = load_processor(model)
        protocol = InferenceProtocol.choose(processor, window, stride, tta)
        segmenter = Segmenter(model, processor, protocol, batch_size, precision=precision)
        pictures = find_examples(Path(checkpoint), examples, folder / EXAMPLES)
        label_map, asked = LabelMap.from_config(model.config), limits or Limits()
        parts = Demo(name_of(checkpoint), segmenter, label_map, folder, asked, window is None, pictures)
        server = DemoServer(parts, listening)
        failed.pop_all()
        return server


class DemoServer:
    """The page at `url`, served by a thread until `close` is called; also a context manager that does.

    Args:
        parts: of the page.
        listening: a socket that listens.
    """

    def __init__(self, parts: Demo, listening: socket.socket) -> None:
        self.folder, self._socket = parts.folder, listening
        host, port = listening.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        folders = dict.fromkeys(FOLDERS, str(self.folder))
        self._before = {name: os.environ.get(name) for name in VARIABLES | folders}
        os.environ.update(VARIABLES | folders)
        largest = int(parts.limits.megabytes * 2**20)
        gate = Gate(_application(build(parts), largest), self.folder, parts.limits.pictures * largest)
        self._server = _uvicorn(gate)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="segtune demo", daemon=True
        )
        self._thread.start()
        self._closed = threading.Event()
        threading.Thread(target=self._sweep, name="segtune demo: old files", daemon=True).start()
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.close()
                raise SegtuneError(f"the server at {self.url} did not start within {PATIENCE:.0f} s; the log says more")
            time.sleep(0.01)

    def _sweep(self) -> None:
        while not self._closed.wait(KEPT / 10):
            remove_old(self.folder, time.time() - KEPT)

    def wait(self) -> None:
        """Until the server ends, or the process is interrupted."""
        while self._thread.is_alive():  # no join: one that is interrupted takes the thread for ended
            self._closed.wait(0.5)

    def close(self) -> None:
        """End the server, and remove its pictures and masks."""
        self._closed.set()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # pages that are still open are no error
        self._server.should_exit = True
        self._thread.join(10.0)
        self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def __enter__(self) -> DemoServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<segtune demo at {self.url}>"


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens: at a port, by default the first free one of `PORTS`.

    Raises:
        UsageError: the port is taken, may not be used, or there is no such host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in PORTS if port is None else (port,):
        try:
            return socket.create_server((host, candidate), family=family, backlog=128)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            words = error.strerror or str(error)
            raise UsageError(f"nothing can listen at {host}, port {candidate} ({words}): name another one") from None
        except OverflowError:
            raise UsageError(f"port {candidate}: a port is a number from 0 to 65535") from None
    taken = f"{PORTS[0]} to {PORTS[-1]} are" if port is None else f"{port} is"
    raise UsageError(f"port {taken} in use on {host}: name another one, or 0 for any that is free")


def remove_old(folder: Path, before: float) -> None:
    """Remove pictures and masks that were made before a time (`time.time`); the examples stay."""
    for path in folder.iterdir():
        if path.name != EXAMPLES and path.stat().st_mtime < before:
            shutil.rmtree(path, ignore_errors=True)


def name_of(checkpoint: str | os.PathLike[str]) -> str:
    """A checkpoint for people: a Hub id, or a folder's name, with its run's before best/ or final/."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return os.fspath(checkpoint)
    parts = folder.resolve().parts
    return "/".join(parts[-2:] if parts[-1] in (BEST, FINAL) else parts[-1:])


def _application(blocks: Any, largest: int) -> Any:
    """Gradio's server of a page; `largest` is in bytes, of a file."""
    gradio = import_gradio()
    from fastapi import FastAPI

    options: dict[str, Any] = {
        "allowed_paths": [],
        "blocked_paths": [],
        "enable_monitoring": False,
        "footer_links": ["api"],
        "max_file_size": largest,
        "mcp_server": False,
        "pwa": False,
        "run_history": False,
        "show_error": False,
        "ssr_mode": False,
        **looks(gradio),
    }
    known = inspect.signature(gradio.mount_gradio_app).parameters
    parent = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    blocks.has_launched = True  # without it, Gradio does not check which files a call names
    return gradio.mount_gradio_app(
        parent, blocks, path="", **{name: value for name, value in options.items() if name in known}
    )


def _uvicorn(application: Any) -> Any:
    import uvicorn

    config = uvicorn.Config(application, log_level="warning", lifespan="on", timeout_graceful_shutdown=1)
    return uvicorn.Server(config)
