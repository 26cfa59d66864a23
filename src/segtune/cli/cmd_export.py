"""`segtune export` and `segtune sensitivity`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segtune.cli import options
from segtune.cli.common import check_before_torch, hide_bars_of_libraries, importing, load_checked, say
from segtune.engines.packages import require
from segtune.errors import UsageError

if TYPE_CHECKING:
    from segtune.export.sources import Source

LIMIT = 100  # images that an export is compared on
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_PACKAGES = {"onnx": _ONNX, "web": _ONNX, "openvino": ("onnx", "onnxscript", "openvino"), "coreml": ("coremltools",)}


def export(
    checkpoint: options.CheckpointArgument,
    to: Annotated[Literal["onnx", "openvino", "torch", "web", "coreml"], typer.Option(help="What is to run it.")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="A folder that does not exist yet; by default RUN/export/onnx for RUN/best, else NAME-onnx here.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="RECIPE|PATH", help="What to compare on; by default the data of the checkpoint's run."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of the data: train, val or test.")] = "val",
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGE", help="Compare on these files, folders or globs instead; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Compare on so many images at most, spread over all.")] = LIMIT,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="For images of this size alone; by default of any size.")
    ] = None,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="The product graph also gives each pixel's probability.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also the graph of logits in float16 (onnx).")] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Also the graph of logits in 8-bit integers (onnx, openvino), calibrated on the train split; of a "
            "page (web) the file that it tries first, and leaves where a browser computes it otherwise.",
        ),
    ] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="With --int8 (openvino): layers that cost more than this of mIoU against float32 on the calibration "
            "images go back to floating point.",
        ),
    ] = None,
    agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of pixels that must agree; fp32: 0.9995, else 0.99.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="bundled|URL|FILE",
            help="Of a page (web): copied from the npm registry (bundled), at an address, or a package at hand.",
        ),
    ] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights; by default what the run or a card says.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write a checkpoint as files for other runtimes, with a certificate that they answer as it does.

    Every file is compared with the checkpoint, pixel by pixel, on the validation split of its run or on what --data or
    --images names. Where one does not agree, nothing is written, and the exit code is 1.
    """
    from segtune.training.config import RECIPE_FILE

    check_before_torch(checkpoint=checkpoint)
    sides = _sides(size)
    folder = _output(checkpoint, to, output)
    recipe = Path(checkpoint).parent / RECIPE_FILE
    if images is None and data is None and not recipe.is_file():
        raise UsageError(
            f"{checkpoint} is not in a run folder: say what to compare the export on, by --data or --images"
        )
    if images is not None and data is not None:
        raise UsageError("give --data or --images, not both")
    if fp16 and to != "onnx":
        raise UsageError(f"--fp16 is for --to onnx, not {to}")
    if int8 and to not in ("onnx", "openvino", "web"):
        raise UsageError(f"--int8 is for --to onnx, openvino and web, not {to}")
    if int8 and images is not None:
        raise UsageError("--int8 is calibrated on a training split, which --images has not: name the data with --data")
    if max_drop is not None and not (int8 and to == "openvino"):
        raise UsageError("--max-drop is for --to openvino --int8")
    if to == "web" and confidence:
        raise UsageError("--confidence is for other targets: the page of --to web shows masks")
    if runtime is not None and to != "web":
        raise UsageError(f"--runtime is for --to web, not {to}")
    require(f"--to {to}", *_PACKAGES.get(to, ()))
    if int8 and to == "openvino":
        require("--to openvino --int8", "nncf")
    source = _open(checkpoint, data or str(recipe), images, split, limit)
    with importing():
        from segtune.export.certificate import FULL, HALF, Thresholds
        from segtune.export.checkpoint_export import Settings, export_checkpoint

    settings = Settings(
        size=sides,
        confidence=confidence,
        fp16=fp16,
        int8=int8,
        max_drop=max_drop,
        thresholds=FULL if agreement is None else Thresholds(agreement, min(agreement, Thresholds.mean_iou)),
        half_thresholds=HALF if agreement is None else Thresholds(agreement, min(agreement, HALF.mean_iou)),
        license=license or _license(Path(checkpoint)),
        runtime=runtime or "bundled",
    )
    hide_bars_of_libraries()
    found = export_checkpoint(source, to, folder, settings)
    if as_json:
        say(json.dumps({"output": str(folder)} | found))
        return
    say(f"compared on {found['compared_on']}")
    for entry in found["files"]:
        say(_line(entry))
    for reason in found.get("verdict", {}).get("reasons", ()):
        say(reason)
    say(f"{folder}: certificate.json has all of it")
    if to == "web":
        say(f"next: python -m http.server --directory {shlex.quote(str(folder))}, then open http://localhost:8000")


def sensitivity(
    checkpoint: options.CheckpointArgument,
    recipe: options.RecipeArgument,
    overrides: options.OverridesArgument = None,
    to: Annotated[
        Literal["onnx", "openvino"], typer.Option(help="Quantise and run by ONNX Runtime, or by nncf and OpenVINO.")
    ] = "onnx",
    split: Annotated[str | None, typer.Option(help="Of the data; by default test where it has it, else val.")] = None,
    images: Annotated[int, typer.Option(min=2, help="Images of the split that are compared, spread over it.")] = 20,
    calibration: Annotated[int, typer.Option(min=1, help="Images of the training split that set the ranges.")] = 32,
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of pixels that a file must share with fp32 to be recommended.")
    ] = 0.99,
    as_json: options.JsonOption = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a table for documents.")] = False,
) -> None:
    """Tell which layers may be computed in int8, and whether int8 is worth it for a checkpoint on this machine.

    Each kind of layer is quantised alone, then all but it: agreement with float32, the loss of true mIoU with its
    interval (paired bootstrap), time as a share of that of float32 in turns. A table takes minutes.
    """
    if as_json and markdown:
        raise UsageError("give --json or --markdown, not both")
    require(f"int8 with --to {to}", *_PACKAGES[to], *(["nncf"] if to == "openvino" else []))
    settings = load_checked(recipe, overrides, checkpoint)
    from segtune.export import sensitivity as measure
    from segtune.viz import terminal

    hide_bars_of_libraries()
    found = measure.sensitivity(
        checkpoint,
        settings,
        runtime="openvino" if to == "openvino" else "onnxruntime",
        split=split,
        images=images,
        calibration=calibration,
        agreement=agreement,
    )
    if as_json:
        say(json.dumps({"recipe": recipe} | found))
    elif markdown:
        say(measure.sensitivity_markdown(found))
    else:
        terminal.show(terminal.sensitivity_table(list(measure.table_cells(found))))
        for line in measure.summary(found):
            say(line)


def _open(checkpoint: str, data: str, images: list[str] | None, split: str, limit: int) -> Source:
    if images is not None:
        from segtune.inference.outputs import find_images

        files = [Path(name) for name in find_images(images)]
        with importing():
            from segtune.export.sources import source_of_images

        return source_of_images(checkpoint, files, limit)
    named: Any = data if Path(data).is_dir() or "://" in data else load_checked(data, None, checkpoint)
    with importing():
        from segtune.export.sources import source_of_data

    return source_of_data(checkpoint, named, split, limit)


def _sides(size: str | None) -> tuple[int, int] | None:
    """(height, width) of `HxW`."""
    if size is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size)
    if found is None:
        raise UsageError(f"--size {size}: give height and width in pixels, such as 512x768")
    return int(found[1]), int(found[2])


def _output(checkpoint: str, to: str, output: Path | None) -> Path:
    """Where the export goes; refused before the work where something is there."""
    from segtune.export.certificate import EXPORTS
    from segtune.training.config import RECIPE_FILE

    folder = Path(checkpoint)
    if output is None:
        in_run = (folder.parent / RECIPE_FILE).is_file()
        name = (folder.name if folder.is_dir() else checkpoint.rpartition("/")[2].partition("@")[0]) + f"-{to}"
        output = folder.parent / EXPORTS / to if in_run else Path(name)
    if output.exists():
        raise UsageError(f"{output} exists already; remove it, or name another folder with --output")
    return output


def _license(checkpoint: Path) -> str:
    """What the card beside the weights or the recipe of their run says."""
    from segtune.hub.model_card import read_front_matter
    from segtune.hub.stage import read_recipe
    from segtune.training.config import RECIPE_FILE

    card, stated = checkpoint / "README.md", None
    if card.is_file():
        stated = read_front_matter(card.read_text(encoding="utf-8")).get("license")
    elif (checkpoint.parent / RECIPE_FILE).is_file():
        stated = (read_recipe(checkpoint.parent).get("hub") or {}).get("license")
    return str(stated or "not stated")


def _line(entry: dict[str, Any]) -> str:
    """A file, and what was found."""
    times, truth = entry["milliseconds"], entry["true_mean_iou"]
    line = (
        f"{entry['file']} ({entry['runtime']}, {entry['precision']}): agreement {entry['agreement']:.6f}, mIoU of "
        f"agreement {entry['mean_iou_of_agreement']:.6f}, {entry['differing_pixels']:,} of {entry['pixels']:,} pixels "
        f"differ; {times['export']:.1f} ms an image, the checkpoint {times['checkpoint']:.1f} ms"
    )
    if truth is not None and truth["difference"] is not None:
        line += f"; true mIoU {truth['export']:.4f}, of the checkpoint {truth['checkpoint']:.4f}"
    line += "" if entry["passed"] else "; BELOW the threshold: do not use this file in this precision"
    return line + (f"; {entry['not_run']}" if "not_run" in entry else "")
