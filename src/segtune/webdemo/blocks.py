"""The page of the web demo, and its interface for programs: Gradio's blocks around `request.segment_files`."""

from __future__ import annotations

import html
import inspect
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from segtune.errors import SegtuneError, UsageError, causes, is_out_of_memory
from segtune.inference.open_network import engine_of, precision_of
from segtune.inference.outputs import Wanted
from segtune.inference.polygons import PolygonFormat
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap
from segtune.viz.html import render
from segtune.viz.numbers import column_percent
from segtune.webdemo.request import (
    Limits,
    Segmented,
    Tell,
    about,
    colored,
    read_ids,
    sampled,
    segment_files,
    small_picture,
)

logger = logging.getLogger(__name__)

STYLES = Path(__file__).with_name("templates") / "styles.css"
KEPT = 3600  # seconds that pictures and masks lie on the disk
WAITING = 32  # requests that may wait; another one is told to come back
NO_POLYGONS, POLYGONS = "no polygons", ("no polygons", "geojson", "coco")
BUG = "this is a bug of segtune, which the log of the server shows in full: please report it"
NO_MEMORY = "there is not enough memory for this picture: give a smaller one"


@dataclass(frozen=True)
class Demo:
    """What the page does.

    Attributes:
        name: of the checkpoint, for people.
        folder: where pictures and masks are written; all that the page can reach.
        may_cut: see `request.WatchedSegmenter`.
        examples: pictures to try.
    """

    name: str
    segmenter: Segmenter
    label_map: LabelMap
    folder: Path
    limits: Limits = field(default_factory=Limits)
    may_cut: bool = True
    examples: Sequence[Path] = ()


class Shown(NamedTuple):
    """What a session keeps of its last picture, to draw it anew with other classes."""

    picture: np.ndarray  # (h, w, 3) uint8
    ids: np.ndarray  # (h, w)


def import_gradio() -> Any:
    """The package gradio; UsageError where it is not installed."""
    try:
        import gradio
    except ImportError:
        raise UsageError("segtune demo needs the package gradio: pip install 'segtune[demo]'") from None
    return gradio


def build(demo: Demo) -> Any:
    """The page as Gradio's `Blocks`, with the endpoint `/predict` for programs."""
    gr = import_gradio()
    handlers = Handlers(demo, gr)
    hidden = _hidden(gr)
    model = {"concurrency_id": "model", "concurrency_limit": 1, "preprocess": False}  # one picture at a time
    outside = {} if _is_six(gr) else looks(gr)
    with gr.Blocks(title=f"{demo.name}: segtune demo", analytics_enabled=False, **outside) as page:
        gr.HTML(handlers.head())
        kept = gr.State(None, time_to_live=KEPT)
        with gr.Tab("One picture"), gr.Row():
            with gr.Column(min_width=300):
                picture = gr.Image(
                    label="Picture", type="filepath", sources=["upload", "webcam", "clipboard"], height=320
                )
                run = gr.Button("Segment", variant="primary")
                polygons = gr.Radio(list(POLYGONS), value=NO_POLYGONS, label="Polygons")
                if demo.examples:
                    gr.Examples(
                        [[str(path)] for path in demo.examples], [picture], label="Examples", cache_examples=False
                    )
            with gr.Column(min_width=300):
                slider = gr.ImageSlider(label="Picture | classes", interactive=False, format="png", max_height=640)
                classes = gr.CheckboxGroup([], label="Classes that are shown", visible=False)
                legend = gr.HTML()
                with gr.Accordion("Confidence: white is certain", open=False):
                    certainty = gr.Image(show_label=False, interactive=False, type="filepath", **_without_sharing(gr))
                files = gr.File(label="Files", file_count="multiple", interactive=False)
        with gr.Tab("Many pictures"):
            pictures = gr.File(label=f"Up to {demo.limits.pictures} pictures", file_count="multiple")
            several_polygons = gr.Radio(list(POLYGONS), value=NO_POLYGONS, label="Polygons")
            run_all = gr.Button("Segment all", variant="primary")
            archive = gr.File(label="Masks, overlays and confidences as a zip", interactive=False)
        outputs = [slider, classes, legend, certainty, files, kept]
        run.click(handlers.one(), [picture, polygons], outputs, show_progress_on=slider, **model, **hidden)
        classes.input(handlers.redraw, [classes, kept], [slider], show_progress="hidden", **hidden)
        run_all.click(handlers.many(), [pictures, several_polygons], [archive], **model, **hidden)
        with gr.Row(visible=False):  # of programs; what has no button has no endpoint
            image, call = gr.Image(label="image", type="filepath"), gr.Button()
            mask, facts = gr.File(label="mask"), gr.JSON(label="about")
        call.click(handlers.predict, [image], [mask, facts], api_name="predict", **model)
    page.queue(default_concurrency_limit=4, max_size=WAITING, api_open=False)
    return page


def looks(gr: Any) -> dict[str, Any]:
    """Theme and styles, with fonts of the system: Gradio's own themes ask a host for theirs."""
    names = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    fonts = {kind: [gr.themes.utils.fonts.Font(name) for name in known] for kind, known in names.items()}
    return {"theme": gr.themes.Default(**fonts), "css": STYLES.read_text(encoding="utf-8")}


def _is_six(gr: Any) -> bool:
    """Whether looks are given where the page is served, and not to `Blocks`, as Gradio 5 has it."""
    return "theme" in inspect.signature(gr.mount_gradio_app).parameters


def _without_sharing(gr: Any) -> dict[str, Any]:
    """Takes the button away that would send a picture to a host outside."""
    names = inspect.signature(gr.Image).parameters
    return {"buttons": ["download", "fullscreen"]} if "buttons" in names else {"show_share_button": False}


def _hidden(gr: Any) -> dict[str, Any]:
    """What keeps an event of the page from being an endpoint for programs."""
    names = inspect.signature(gr.Button().click).parameters
    return {"api_visibility": "private"} if "api_visibility" in names else {"api_name": False}


class Handlers:
    """What happens when a button is pressed, or a program calls."""

    def __init__(self, demo: Demo, gr: Any) -> None:
        self.demo, self.gr = demo, gr

    def head(self) -> str:
        """What the page says of the model and of itself."""
        segmenter = self.demo.segmenter
        model, window = segmenter.model, segmenter.protocol.window
        where = f"on {next(model.parameters()).device} in {precision_of(model, segmenter.precision)}"
        return render(
            "webdemo/templates/head.html",
            name=self.demo.name,
            labels=self.demo.label_map.num_labels,
            seen=f"windows of {window}" if window else "pictures seen whole",
            where=where if engine_of(model) == "torch" else f"{where} by {engine_of(model)}",
            limits=self.demo.limits,
        )

    def one(self) -> Callable[..., Any]:
        """Of one picture: what the page shows, and the files."""
        progress = self.gr.Progress()

        def segment(picture: Any, polygons: str, progress: Any = progress) -> list[Any]:
            with self._told():
                wanted = Wanted(overlay=True, confidence="png", polygons=_format(polygons))
                (upload,) = self._uploads([picture])
                _, (found,) = self._segment([upload], wanted, progress)
                return self._shown(upload, found)

        return segment

    def many(self) -> Callable[..., Any]:
        """Of many pictures: a zip."""
        progress = self.gr.Progress()

        def segment(pictures: Any, polygons: str, progress: Any = progress) -> str:
            with self._told():
                wanted = Wanted(overlay=True, confidence="png", polygons=_format(polygons))
                folder, _ = self._segment(self._uploads(pictures or []), wanted, progress)
                archive = shutil.make_archive(str(folder.parent / "masks"), "zip", folder)
                shutil.rmtree(folder, ignore_errors=True)
                return archive

        return segment

    def predict(self, image: Any) -> tuple[str, dict[str, Any]]:
        """Segment a picture.

        Args:
            image: the picture.

        Returns:
            The mask, a PNG of class ids with the classes' colours as its palette (a TIFF of a georeferenced TIFF), and
            a JSON object: height, width, protocol, and classes, each with id, name, color and share of the area.
        """
        with self._told():
            _, (found,) = self._segment(self._uploads([image]), Wanted())
            return str(found.files[0]), about(found, self.demo.label_map)

    def redraw(self, names: Sequence[str], kept: Shown | None) -> tuple[np.ndarray, np.ndarray] | None:
        """The slider again, with these classes."""
        with self._told():
            if kept is None:
                return None
            chosen = [int(name) for name in names]
            return kept.picture, colored(kept.picture, kept.ids, self.demo.label_map, chosen)

    def _segment(
        self, uploads: Sequence[Path], wanted: Wanted, progress: Tell | None = None
    ) -> tuple[Path, list[Segmented]]:
        demo = self.demo
        return segment_files(
            demo.segmenter,
            demo.label_map,
            uploads,
            demo.folder,
            wanted,
            demo.limits,
            may_cut=demo.may_cut,
            tell=progress if progress is not None else (lambda part, what: None),
        )

    def _uploads(self, given: Sequence[Any]) -> list[Path]:
        """The files that a page or a program has uploaded; they come as Gradio's descriptions of files."""
        paths = [Path(str(item["path"])) for item in given if isinstance(item, dict) and item.get("path")]
        if not paths:
            raise UsageError("there is no picture yet: choose one")
        for path in paths:
            if not path.resolve().is_relative_to(self.demo.folder.resolve()) or not path.is_file():
                raise UsageError(f"{path.name} was not uploaded, or an hour ago: upload it once more")
        return paths

    def _shown(self, upload: Path, found: Segmented) -> list[Any]:
        gr, label_map = self.gr, self.demo.label_map
        picture = small_picture(upload)
        ids = sampled(read_ids(found.files[0], label_map), (picture.shape[0], picture.shape[1]))
        chosen = [share.id for share in found.shares]
        choices = [
            (f"{label_map.names[share.id]} {column_percent(share.part)}", str(share.id)) for share in found.shares
        ]
        certainty = next(path for path in found.files if path.stem.endswith("_confidence"))
        return [
            (picture, colored(picture, ids, label_map, chosen)),
            gr.CheckboxGroup(choices=choices, value=[value for _, value in choices], visible=True),
            render("webdemo/templates/legend.html", about=about(found, label_map)),
            str(certainty),
            [str(path) for path in found.files],
            Shown(picture, ids),
        ]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong inside is one line in the page; a bug is logged with its traceback, and said to be one."""
        try:
            yield
        except Exception as error:
            if isinstance(error, SegtuneError):
                line = " ".join(str(error).split())
            elif any(is_out_of_memory(link) for link in causes(error)):
                line = NO_MEMORY
            else:
                logger.exception("a request of the demo failed")
                line = BUG
            # The page takes it for HTML, and names of files come from others.
            raise self.gr.Error(html.escape(line, quote=False), print_exception=False) from error


def _format(polygons: str) -> PolygonFormat | None:
    if polygons not in POLYGONS:
        raise UsageError(f"polygons {polygons!r}: one of {', '.join(POLYGONS)}")
    return None if polygons == NO_POLYGONS else cast(PolygonFormat, polygons)
