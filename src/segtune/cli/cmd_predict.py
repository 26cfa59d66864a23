"""`segtune predict` and `segtune label`."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segtune.cli import options
from segtune.cli.common import check_before_torch, hide_bars_of_libraries, importing, leading_checkpoints, say
from segtune.errors import UsageError

if TYPE_CHECKING:
    from segtune.inference.device import Precision
    from segtune.inference.outputs import Targets, Wanted


def predict(
    checkpoint: options.CheckpointArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="[CHECKPOINT…] IMAGE",
            help="Image files, folders of them, quoted globs, videos, http(s) addresses; - is stdin. Before them, "
            "folders of further checkpoints: the mean of the probabilities of all counts.",
        ),
    ],
    output: Annotated[str, typer.Option(metavar="DIR", help="Where the masks go.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also save NAME_overlay.png, of a video .mp4.")] = False,
    window: options.WindowOption = None,
    stride: options.StrideOption = None,
    overlap: Annotated[int | None, typer.Option(min=0, help="Instead of --stride: pixels that windows share.")] = None,
    tta: options.TtaOption = False,
    confidence: Annotated[
        Literal["png", "tif"] | None, typer.Option(help="Also save NAME_confidence: 8-bit png or 32-bit tif.")
    ] = None,
    polygons: Annotated[
        Literal["geojson", "coco", "labelme"] | None, typer.Option(help="Also save the regions as polygons.")
    ] = None,
    simplify: Annotated[float, typer.Option(min=0, help="Let polygons' borders move by so many pixels.")] = 0.0,
    min_region: Annotated[int, typer.Option(min=0, help="Give smaller regions to a neighbour, in polygons.")] = 0,
    frames: Annotated[
        Literal["all", "first"] | None,
        typer.Option(help="Of files with several pages, frames or slices: a mask for each, or the first alone."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many images at most, the first ones.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Leave images as they are whose files are there.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="Predict on a Ray cluster. Images and --output may lie in object stores (s3://…); an --output that "
            "ends in .parquet is a folder of tables.",
        ),
    ] = None,
    as_json: options.JsonOption = False,
    batch_size: options.BatchOption = 1,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = "auto",
    engine: options.EngineOption = "torch",
) -> None:
    """Save a mask of class ids for each image: a palette PNG in the labels' colours, at the image's own size.

    Of a georeferenced TIFF, the mask is a TIFF in the same place. Of a video, there is a folder of masks.
    Processes that accelerate launch or torchrun starts divide the images; the one that ends last prints the result.
    """
    from segtune.imageio.incoming import as_files, is_incoming
    from segtune.inference import outputs

    more, images = leading_checkpoints(images)
    if more and not images:
        raise UsageError(f"no images: {more[-1]} is the folder of a checkpoint")
    folder = Path(output) if ray is not None else _local_folder(output, images)
    for each in (checkpoint, *more):
        check_before_torch(checkpoint=each)
    wanted = outputs.Wanted(overlay, confidence, polygons, simplify, min_region)
    if ray is not None:
        if engine != "torch" or frames:
            raise UsageError("--engine and --frames do not go with --ray, whose workers run PyTorch on whole pictures")
        if more:
            raise UsageError(f"--ray runs one model, not {1 + len(more)}")
        protocol_options = (window, _stride(window, stride, overlap), tta)
        _predict_on_ray(
            ray, checkpoint, images, output, wanted, limit, protocol_options, overwrite, resume, as_json, batch_size,
            device, precision,
        )  # fmt: skip
        return
    found = outputs.find_images(images)[:limit]
    in_shares = resume or os.environ.get("WORLD_SIZE", "1") != "1"
    if in_shares:
        _refuse_in_shares(found, overwrite)
    with importing():
        from segtune.imageio.raster import any_size
        from segtune.inference.open_network import open_networks, precision_of
        from segtune.inference.parallel.predict_share import predict_share
        from segtune.inference.parallel.processes import Processes
        from segtune.inference.predict_files import predict_files
        from segtune.inference.processor import load_processor
        from segtune.inference.protocol import InferenceProtocol
        from segtune.inference.segmenter import Segmenter
        from segtune.labels.label_map import LabelMap

    processes, before = Processes.launched(), 0
    with any_size(), as_files(found) as files:
        paths, parts = outputs.with_frames(files, frames)
        fetched = {path for path, name in files.items() if is_incoming(name)}
        targets = outputs.plan_targets(paths, folder, wanted, overwrite or in_shares, fetched, parts)
        hide_bars_of_libraries()
        model = open_networks([checkpoint, *more], processes.device(device), engine, precision)
        processor = load_processor(model)
        protocol = InferenceProtocol.choose(processor, window, _stride(window, stride, overlap), tta)
        computed = precision_of(model, precision)
        segmenter = Segmenter(model, processor, protocol, batch_size, precision=precision)
        job = (segmenter, LabelMap.from_config(model.config), paths, targets, folder, wanted)
        if in_shares:
            predicted = predict_share(*job, processes, resume=resume)
            if predicted is None:
                return
            masks, before = predicted
        else:
            masks = predict_files(*job)
    if as_json:
        result = {
            "output": str(folder),
            "masks": masks,
            "precision": computed,
            "engine": engine,
            "images": _written([files[path] for path in paths], targets),
        }
        say(json.dumps(result | ({"polygons": str(folder / outputs.COCO_FILE)} if polygons == "coco" else {})))
    else:
        by = "" if engine == "torch" else f" by {engine}"
        how = f", computed{by} in {computed}" if by or computed != "fp32" else ""
        there = f"; {before} of {len(targets)} images were done before" if resume and processes.count == 1 else ""
        say(f"{masks} mask{'s' if masks > 1 else ''} in {folder}{how}{there}")


def label(
    checkpoint: options.CheckpointArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files, folders of them, quoted globs.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="A new folder, which training reads.")],
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Pixels below this are ignored; calibrate the checkpoint first.")
    ] = 0.9,
    window: options.WindowOption = None,
    stride: options.StrideOption = None,
    tta: options.TtaOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    as_json: options.JsonOption = False,
    batch_size: options.BatchOption = 1,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = "auto",
) -> None:
    """Label pictures where a checkpoint is sure, for training: images/, masks/ and classes.json, ignored elsewhere.

    Confidences are taken of logits divided by the checkpoint's temperature, which `segtune calibrate` fits.
    """
    from segtune.inference import outputs

    folder = _local_folder(output, images)
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder} exists already; name another folder, or say --overwrite to replace it")
    check_before_torch(checkpoint=checkpoint)
    sources = outputs.find_images(images)
    found = [path for path in sources if isinstance(path, Path)]
    if len(found) < len(sources):
        raise UsageError(
            "segtune label takes files, which it copies: save images of the web or of stdin to files first"
        )
    with importing():
        from segtune.hub.privacy import public_name
        from segtune.imageio.raster import any_size
        from segtune.inference import pseudo_labels
        from segtune.inference.open_network import open_network
        from segtune.inference.processor import load_processor
        from segtune.inference.protocol import InferenceProtocol
        from segtune.inference.segmenter import Segmenter
        from segtune.labels.label_map import LabelMap
        from segtune.recipe.recipe import is_data

    with any_size():
        pseudo_labels.refuse_unfit(found, folder)
        targets = outputs.plan_targets(found, folder / pseudo_labels.MASKS, outputs.Wanted(), overwrite=True)
        hide_bars_of_libraries()
        model = open_network(checkpoint, device, "torch", precision)
        processor = load_processor(model)
        protocol = InferenceProtocol.choose(processor, window, stride, tta)
        segmenter = Segmenter(model, processor, protocol, batch_size, precision=precision)
        label_map = LabelMap.from_config(model.config)
        counted = pseudo_labels.write_pseudo_labels(
            segmenter, label_map, found, targets, folder, min_confidence, public_name(checkpoint)
        )
    rows = zip(label_map.names, counted.labelled.tolist(), counted.predicted.tolist(), strict=True)
    classes = {name: {"labelled": sure, "predicted": all_} for name, sure, all_ in rows}
    if as_json:
        result = {"output": str(folder), "images": counted.images, "left_out": counted.left_out}
        result |= {"labelled_share": counted.share, "min_confidence": min_confidence}
        say(json.dumps(result | {"temperature": segmenter.temperature, "per_class": classes}))
        return
    without = f"; {len(counted.left_out)} without a sure pixel left out" if counted.left_out else ""
    say(f"{counted.images} pictures in {folder}, {counted.share:.1%} of the pixels labelled{without}")
    for name, row in classes.items():
        share = row["labelled"] / max(row["predicted"], 1)
        say(f"  {name}: {row['labelled']} of {row['predicted']} pixels ({share:.1%})")
    if segmenter.temperature == 1.0:
        named = shlex.quote(checkpoint)
        say(f"the confidences are not calibrated: segtune calibrate {named} RECIPE, then label again", err=True)
    data = str(folder) if is_data(folder) else f"./{folder}"  # else a shipped recipe has its name
    say(f"next: {shlex.join(['segtune', 'train', data])}", err=True)


def _local_folder(output: str, images: Sequence[str]) -> Path:
    from segtune.imageio.object_store import is_stored

    if stored := next(filter(is_stored, [*images, output]), None):
        raise UsageError(f"{stored} is in an object store: --ray local reads and writes these, on this machine")
    if Path(output).is_file():
        raise UsageError(f"--output {output} is a file: name a folder")
    return Path(output)


def _predict_on_ray(
    address: str,
    checkpoint: str,
    images: Sequence[str],
    output: str,
    wanted: Wanted,
    limit: int | None,
    protocol_options: tuple[int | None, int | None, bool],
    overwrite: bool,
    resume: bool,
    as_json: bool,
    batch_size: int,
    device: str | None,
    precision: Precision,
) -> None:
    from segtune.imageio.object_store import is_stored
    from segtune.inference.parallel import ray_data

    place = output.rstrip("/") if is_stored(output) else str(_local_folder(output, []).absolute())
    ray_data.check_job(place, wanted, overwrite)
    found = ray_data.find_stored_images(images)[:limit]
    import torch

    with importing():
        from segtune.inference.device import choose_precision
        from segtune.inference.processor import load_processor
        from segtune.inference.protocol import InferenceProtocol
        from segtune.inference.segmenter import Segmenter
        from segtune.labels.label_map import LabelMap
        from segtune.segformer.loading import load_model

    hide_bars_of_libraries()
    model = load_model(checkpoint, whole=True)
    processor = load_processor(model)
    protocol = InferenceProtocol.choose(processor, *protocol_options)
    if device == "cpu":
        precision = choose_precision(precision, torch.device("cpu"))
    job = ray_data.Job(protocol, batch_size, precision, device, wanted, place)
    segmenter = Segmenter(model, processor, protocol, batch_size, precision=precision)
    label_map = LabelMap.from_config(model.config)
    masks, before = ray_data.predict_on_ray(address, segmenter, label_map, found, job, resume=resume)
    if as_json:
        rows = [{"image": image, "mask": mask} for image, mask in zip(found, masks, strict=True)]
        say(json.dumps({"output": output, "masks": len(masks), "precision": precision, "images": rows}))
    else:
        there = f"; {before} of {len(found)} images were done before" if resume else ""
        say(f"{len(masks)} mask{'s' if len(masks) > 1 else ''} in {output}{there}")


def _refuse_in_shares(images: Sequence[Path | str], overwrite: bool) -> None:
    """Refuse what has no meaning where images are left out that are done, or are divided among processes."""
    if overwrite:
        raise UsageError("--overwrite replaces what --resume and several processes go on from: remove the folder first")
    if incoming := [image for image in images if isinstance(image, str)]:
        raise UsageError(f"{incoming[0]}: --resume and several processes take files; save it to one first")


def _written(names: Sequence[str], targets: Sequence[Targets]) -> list[dict[str, Any]]:
    """For each image, as it was named, the files that were written of it; of a video, its folder of masks."""
    return [
        {"image": name, **{key: str(path) for key, path in target._asdict().items() if isinstance(path, Path)}}
        for name, target in zip(names, targets, strict=True)
    ]


def _stride(window: int | None, stride: int | None, overlap: int | None) -> int | None:
    if overlap is None:
        return stride
    if stride is not None or not window:
        raise UsageError(f"--overlap {overlap} goes with --window, and in the place of --stride")
    return window - overlap
