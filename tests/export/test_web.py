"""The page in the browser: its files, and that Chromium gives the masks of `segtune predict` without a network."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import re
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtune.errors import DataError, UsageError
from segtune.export import checkpoint_export
from segtune.export.certificate import Thresholds
from segtune.export.checkpoint_export import Settings, export_checkpoint
from segtune.export.sources import source_of_images
from segtune.export.web import drawn, hardest
from segtune.export.web_runtime import FILES, runtime_files
from segtune.imageio.writers import SIGNATURE
from segtune.inference.predict import predict
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from support.exports import network
from support.random_networks import network_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SECONDS = 120_000  # milliseconds that a page may take on a machine that does other work
NAMES = ["sky", "road & kerb", "<b>car</b>", "tree", "person"]
TEXTS = {"index.html", "page.css", "page.js", "page.json", "worker.js"}


def save_checkpoint(folder: Path, model: Any, **settings: Any) -> Path:
    model.save_pretrained(folder)
    SegformerImageProcessor(**settings).save_pretrained(folder)
    return folder


def save_noise(path: Path, height: int, width: int) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


# --- the files -------------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_network, graph = network(5)
    monkeypatch.setattr(checkpoint_export, "logits_model", lambda model, size: onnx.load_from_string(graph))
    monkeypatch.setattr(checkpoint_export, "runtime_files", lambda runtime: dict.fromkeys(FILES, b"ort"))
    checkpoint = save_checkpoint(tmp_path / "checkpoint", random_network, size={"shortest_edge": 64})
    source = source_of_images(str(checkpoint), [save_noise(tmp_path / "a.png", 64, 97)], 1)
    folder = tmp_path / "page"
    found = export_checkpoint(source, "web", folder, Settings(license="mit"))
    assert [(one["file"], one["passed"]) for one in found["files"]] == [("product.onnx", True)]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    runtime = {f"runtime/{name}" for name in (*FILES, "LICENSE.txt")}
    of_model = {"certificate.json", "config.json", "preprocessor_config.json", "product.onnx"}
    assert names == TEXTS | {"check.bin", "check.png"} | of_model | runtime
    settings = json.loads((folder / "page.json").read_text())
    assert len(settings["classes"]) == 5 and settings["about"]["Licence of the weights"] == "mit"
    assert settings["runtime"]["base"] == "runtime/" and settings["least_side"] == 1  # it resizes
    assert "Softmax" not in {node.op_type for node in onnx.load(folder / "product.onnx").graph.node}  # in blocks
    digest = hashlib.sha384((folder / "product.onnx").read_bytes()).digest()
    (model,) = settings["models"]
    assert model["integrity"] == f"sha384-{base64.b64encode(digest).decode()}"
    assert (model["file"], model["check"], model["precision"]) == ("product.onnx", "check.bin", "float32")
    image = np.asarray(Image.open(folder / "check.png"))
    stored = np.frombuffer((folder / "check.bin").read_bytes(), np.uint8)
    assert np.array_equal(stored[: image.size].reshape(image.shape), image)
    assert np.array_equal(stored[image.size :].reshape(image.shape[:2]), predict(str(checkpoint), image))
    for name in TEXTS:  # a page that asks nobody
        assert not re.search(r"https?://(?!localhost)\w", (folder / name).read_text(encoding="utf-8")), name


def test_a_file_in_8_bit_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes first, and the check holds what it answers itself; the one in float32 stays as it was."""
    model, graph = network(5)
    monkeypatch.setattr(checkpoint_export, "logits_model", lambda model, size: onnx.load_from_string(graph))
    checkpoint = save_checkpoint(tmp_path / "checkpoint", model, size={"shortest_edge": 64})
    source = source_of_images(str(checkpoint), [save_noise(tmp_path / "a.png", 64, 97)], 1)
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((1, 3, 64, 96), dtype=np.float32) for _ in range(3)]
    settings = Settings(int8=True, half_thresholds=Thresholds(0.5, 0.1), runtime="https://example.org/ort@1/dist")
    with pytest.raises(UsageError, match=r"--int8 is calibrated on .* --data"):
        export_checkpoint(source, "web", tmp_path / "page", settings)
    found = export_checkpoint(source._replace(inputs=lambda: inputs), "web", tmp_path / "page", settings)
    assert [(one["file"], one["precision"], one["whole_chain"]) for one in found["files"]] == [
        ("product_int8.onnx", "int8", True),
        ("product.onnx", "fp32", True),
    ]
    assert "verdict" not in found  # what it takes here is not what it takes in a browser
    folder = tmp_path / "page"
    stated = json.loads((folder / "page.json").read_text())["models"]
    assert [(one["file"], one["check"], one["least"]) for one in stated] == [
        ("product_int8.onnx", "check_int8.bin", 0.99),
        ("product.onnx", "check.bin", 0.999),
    ]
    weights = [
        sum(len(one.raw_data) for one in onnx.load(folder / name).graph.initializer)
        for name in ("product_int8.onnx", "product.onnx")
    ]
    assert weights[0] < weights[1]
    image = np.asarray(Image.open(folder / "check.png"))
    for one in stated:
        (mask,) = onnxruntime.InferenceSession(folder / one["file"]).run(None, {"image": image})
        stored = np.frombuffer((folder / one["check"]).read_bytes(), np.uint8)
        assert np.array_equal(stored[: image.size], image.ravel())
        assert (stored[image.size :] == mask.ravel()).mean() > 0.999
    checks = [(folder / one["check"]).read_bytes() for one in stated]
    assert checks[0] != checks[1]


def test_runtime_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = network(5)
    monkeypatch.setattr(checkpoint_export, "logits_model", lambda model, size: onnx.load_from_string(graph))
    checkpoint = save_checkpoint(tmp_path / "checkpoint", model, do_resize=False)
    source = source_of_images(str(checkpoint), [save_noise(tmp_path / "a.png", 64, 97)], 1)
    export_checkpoint(source, "web", tmp_path / "page", Settings(runtime="https://example.org/ort@1/dist"))
    assert not (tmp_path / "page" / "runtime").exists()
    settings = json.loads((tmp_path / "page" / "page.json").read_text())
    assert settings["least_side"] == 29  # pictures keep their size
    assert settings["runtime"] == settings["runtime"] | {"base": "https://example.org/ort@1/dist/", "files": FILES}


@pytest.mark.parametrize(
    ("channels", "settings", "words"),
    [
        (4, {"image_mean": [0.5] * 4, "image_std": [0.5] * 4}, "this model reads 4 channels"),
        (3, {"rescale_factor": 1 / 65535}, "other numbers than those of 8-bit pictures"),
    ],
)
def test_other_pictures_are_refused(channels: int, settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = network_of(num_channels=channels)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", model, do_resize=False, **settings)
    source = source_of_images(str(checkpoint), [], 1)
    with pytest.raises(UsageError, match=words):
        export_checkpoint(source, "web", tmp_path / "page", Settings())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_the_check_has_the_most_mixed_mask() -> None:
    def by_brightness(image: np.ndarray) -> np.ndarray:
        return (image.mean(axis=2) > 128).astype(np.uint8)

    image, mask = hardest(by_brightness, (32, 48))
    assert np.array_equal(mask, by_brightness(image))
    shares = [by_brightness(drawn(seed, (32, 48))).mean() for seed in range(8)]
    assert abs(mask.mean() - 0.5) == min(abs(share - 0.5) for share in shares)


# --- in Chromium -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = network_of(num_labels=5)
    with torch.no_grad():  # so that every class wins somewhere
        model.decode_head.classifier.bias -= model(torch.randn(1, 3, 64, 64)).logits.mean((0, 2, 3))
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: number for number, name in enumerate(NAMES)}
    return save_checkpoint(tmp_path_factory.mktemp("web") / "checkpoint", model, size={"shortest_edge": 128})


@pytest.fixture(scope="module")
def site(checkpoint: Path, earth: Path) -> Path:
    """The exported folder, with the runtime as npm publishes it."""
    try:
        runtime_files("bundled")
    except DataError as error:
        pytest.skip(str(error))
    images = sorted((earth / "images" / "test").iterdir())[:3]
    export_checkpoint(source_of_images(str(checkpoint), images, 3), "web", checkpoint.parent / "page", Settings())
    return checkpoint.parent / "page"


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *values: object) -> None:
        pass


class IsolatedHandler(Handler):
    """With the two headers that allow threads."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a folder, served on this machine, as a page that reaches nothing else; afterwards, nothing went wrong."""
    faults: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_site(folder: Path, *, handler: type = Handler, script: str = "", width: int = 1280) -> Any:
            serve = functools.partial(handler, directory=str(folder))
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            home = f"http://127.0.0.1:{server.server_address[1]}/"
            context = browser.new_context(viewport={"width": width, "height": 900})
            stack.callback(context.close)
            asked: list[str] = []

            def look(route: Any) -> None:
                address = route.request.url
                asked.append(address)
                if address.startswith(home):
                    route.continue_()
                else:
                    faults.append(f"asked for {address}")
                    route.abort()

            context.route(re.compile("^https?:"), look)
            context.add_init_script(script)
            page = context.new_page()
            page.set_default_timeout(SECONDS)
            page.on("console", lambda message: faults.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: faults.append(f"error: {error}"))
            page.asked, page.faults = asked, faults
            page.goto(home)
            page.locator("#status:text('Ready'), #error:visible").first.wait_for()
            return page

        yield open_site
    assert faults == []


def segmented(page: Any, path: Path) -> np.ndarray:
    """The mask that the page saves of a picture."""
    page.set_input_files("#file", path)
    page.locator(f"#status:text('Segmented {path.name}'), #error:visible").first.wait_for()
    assert not page.locator("#error").is_visible(), page.inner_text("#error")
    with page.expect_download() as download:
        page.click("#save-mask")
    assert download.value.suggested_filename == f"{path.stem}.mask.png"
    with Image.open(download.value.path()) as mask:
        assert mask.mode == "P"
        return np.asarray(mask)


@pytest.mark.slow
@pytest.mark.parametrize("handler", [Handler, IsolatedHandler])
def test_masks_of_the_browser(
    handler: type, site: Path, checkpoint: Path, earth: Path, camvid: Path, visit: Callable[..., Any], tmp_path: Path
) -> None:
    page = visit(site, handler=handler)
    assert "Checked in this browser: 100.00 %" in page.inner_text("#status")
    tiles = sorted((earth / "images" / "test").iterdir())[5:7]
    streets = sorted((camvid / "images").rglob("*.*"))[:1]
    for number, path in enumerate([*tiles, *streets]):
        with Image.open(path) as image:
            image.convert("RGB").save(tmp_path / f"{number}.png")
        for picture in (tmp_path / f"{number}.png", path):  # a PNG, and as it is, a JPEG
            mask, expected = segmented(page, picture), predict(str(checkpoint), picture)
            assert mask.shape == expected.shape and len(np.unique(expected)) > 1
            assert (mask == expected).mean() >= 0.999, picture
    assert re.fullmatch(r"\d+\.\d\d s for \d+ × \d+ pixels · \d+ MiB of memory · \d+ threads?", figures(page))
    cores = page.evaluate("navigator.hardwareConcurrency") if handler is IsolatedHandler else 1
    assert f"· {min(cores, 8)} thread" in figures(page)
    rows = page.locator("#legend tbody tr").all_inner_texts()
    areas = {name.strip(): area.strip() for name, area in (row.split("\t") for row in rows)}
    assert areas.keys() == set(NAMES)  # a name that looks like markup is text
    shares = {NAMES[k]: 100 * (mask == k).mean() for k in range(5)}
    for name, area in areas.items():
        assert area in ("–", "< 0.1 %") or float(area.removesuffix(" %")) == pytest.approx(shares[name], abs=0.051)
    assert any(address.endswith("/product.onnx") for address in page.asked)  # so the requests of workers are seen


def figures(page: Any) -> str:
    return str(page.inner_text("#figures"))


@pytest.mark.slow
def test_classes_opacity_and_errors(site: Path, checkpoint: Path, visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit(site, width=390)
    path = save_noise(tmp_path / "a.png", 90, 120)
    mask = segmented(page, path)
    page.locator("#opacity").fill("100")
    with page.expect_download() as download:
        page.click("#save-overlay")
    overlay = np.asarray(Image.open(download.value.path()).convert("RGB"))
    colors = np.array([entry["color"] for entry in json.loads((site / "page.json").read_text())["classes"]])
    assert np.array_equal(overlay, colors[mask])
    page.locator("#all").uncheck()
    page.get_by_label(NAMES[1]).check()
    with page.expect_download() as download:
        page.click("#save-overlay")
    overlay = np.asarray(Image.open(download.value.path()).convert("RGB"))
    expected = np.where((mask == 1)[..., None], colors[1], np.asarray(Image.open(path)))
    assert np.array_equal(overlay, expected)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    page.locator("#error:text('notes.txt cannot be read')").wait_for()
    page.set_input_files("#file", {"name": "huge.png", "mimeType": "image/png", "buffer": black_png(60_000)})
    page.locator("#error:text('huge.png cannot be read')").wait_for()
    assert np.array_equal(segmented(page, path), mask)  # it goes on after a fault


def black_png(side: int) -> bytes:
    """A square of one bit a pixel, made row by row."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + -(-side // 8))) for _ in range(side)) + packer.flush()
    header = struct.pack(">2I5B", side, side, 1, 0, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


CAMERA = """
navigator.mediaDevices.getUserMedia = async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
  const context = canvas.getContext("2d");
  setInterval(() => { context.fillStyle = `hsl(${Date.now() % 360} 80% 50%)`; context.fillRect(0, 0, 64, 48); }, 50);
  return canvas.captureStream(20);
};
"""


@pytest.mark.slow
def test_a_picture_that_is_too_small_is_told(site: Path, visit: Callable[..., Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(site, tmp_path / "page"))
    settings = json.loads((folder / "page.json").read_text())
    (folder / "page.json").write_text(json.dumps(settings | {"least_side": 29}))
    page = visit(folder)
    page.set_input_files("#file", save_noise(tmp_path / "thin.png", 28, 40))
    page.locator("#error:text('thin.png has 40 × 28 pixels: this model takes sides of 29 or more')").wait_for()
    segmented(page, save_noise(tmp_path / "enough.png", 29, 40))


@pytest.mark.slow
def test_camera(site: Path, visit: Callable[..., Any]) -> None:
    page = visit(site, script=CAMERA)
    page.click("#camera")
    page.locator("#figures:text('64 × 48 pixels')").wait_for()
    assert page.inner_text("#camera") == "Stop the camera" and page.locator("#mask").is_visible()
    page.click("#camera")
    page.locator("#status:text('The camera is off')").wait_for()


@pytest.mark.slow
def test_no_camera_is_told(site: Path, visit: Callable[..., Any]) -> None:
    page = visit(site, script="navigator.mediaDevices.getUserMedia = async () => { throw new Error('no device'); };")
    page.click("#camera")
    page.locator("#error:text('the camera cannot be used: no device')").wait_for()
    assert page.inner_text("#camera") == "Start the camera"


@pytest.mark.slow
def test_a_model_that_answers_otherwise_is_refused(site: Path, visit: Callable[..., Any], tmp_path: Path) -> None:
    folder = shutil.copytree(site, tmp_path / "page")
    spoil(folder / "check.bin")  # as of a back end that is wrong on half the pixels
    page = visit(folder)
    words = "this model is refused: its masks are wrong in this browser (50.00 % of the check's pixels agree"
    assert words in page.inner_text("#error")
    assert page.locator("#file").is_disabled() and page.locator("#camera").is_disabled()


@pytest.fixture(scope="module")
def int8_site(checkpoint: Path, site: Path, earth: Path) -> Path:
    """The page with a file in 8-bit integers, calibrated on three tiles."""
    tiles = [np.asarray(Image.open(path)) for path in sorted((earth / "images" / "train").iterdir())[:3]]
    processor = SegformerImageProcessor.from_pretrained(checkpoint)
    inputs = [np.asarray(processor(tile, return_tensors="np")["pixel_values"]) for tile in tiles]
    images = sorted((earth / "images" / "test").iterdir())[:3]
    source = source_of_images(str(checkpoint), images, 3)._replace(inputs=lambda: inputs)
    # random weights have near ties everywhere
    settings = Settings(int8=True, half_thresholds=Thresholds(0.5, 0.0))
    export_checkpoint(source, "web", checkpoint.parent / "page-int8", settings)
    return checkpoint.parent / "page-int8"


@pytest.mark.slow
def test_8_bit_integers_are_taken_where_they_are_right(
    int8_site: Path, earth: Path, visit: Callable[..., Any], tmp_path: Path
) -> None:
    page = visit(int8_site)
    assert not any(address.endswith("/product.onnx") for address in page.asked)
    assert "in 8-bit integers" in page.text_content("#about")
    session = onnxruntime.InferenceSession(int8_site / "product_int8.onnx")
    for number, path in enumerate(sorted((earth / "images" / "test").iterdir())[5:7]):
        image = Image.open(path).convert("RGB")
        image.save(tmp_path / f"{number}.png")
        (expected,) = session.run(None, {"image": np.asarray(image)})
        # sums in another order end on the other side of a step here and there, which random weights do not hide
        assert (segmented(page, tmp_path / f"{number}.png") == expected).mean() >= 0.95


@pytest.mark.slow
def test_8_bit_integers_are_refused_where_they_are_wrong(
    int8_site: Path, checkpoint: Path, earth: Path, visit: Callable[..., Any], tmp_path: Path
) -> None:
    """On half the pixels, as of a back end that computes otherwise: float32 is taken, and the page says so."""
    folder = shutil.copytree(int8_site, tmp_path / "page")
    spoil(folder / "check_int8.bin")
    page = visit(folder)
    said = page.inner_text("#status")
    assert "Ready. Checked in this browser: 100.00 %" in said
    assert "product_int8.onnx (8-bit integers) is not used: this model is refused: its masks are wrong" in said
    path = sorted((earth / "images" / "test").iterdir())[5]
    Image.open(path).convert("RGB").save(tmp_path / "a.png")
    assert (segmented(page, tmp_path / "a.png") == predict(str(checkpoint), tmp_path / "a.png")).mean() >= 0.999


def spoil(check: Path) -> None:
    """Change the mask of a check on half its pixels."""
    stored = bytearray(check.read_bytes())
    area = 96 * 160
    for place in range(len(stored) - area, len(stored) - area // 2):
        stored[place] = (stored[place] + 1) % 5
    check.write_bytes(stored)


@pytest.mark.slow
def test_a_damaged_model_is_told(site: Path, visit: Callable[..., Any], tmp_path: Path) -> None:
    folder = shutil.copytree(site, tmp_path / "page")
    with (folder / "product.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    page = visit(folder)
    assert "product.onnx cannot be fetched, or is not the file that was exported" in page.inner_text("#error")
    assert page.locator("#file").is_disabled()
    assert [fault for fault in page.faults if "integrity" not in fault] == []
    page.faults.clear()  # the browser itself says so on its console
