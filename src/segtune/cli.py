"""The command line, `segtune train | evaluate | predict | doctor | data | push | …`: `segtune --help` lists it all.

Results go to stdout, logs and progress bars to stderr. Exit codes: 0 done, 1 failed, 2 bad usage or recipe, 3
stopped early on request (a signal, training.time_limit) with everything saved.
torch and its kin are imported inside the commands that need them, so that help and lists answer at once.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer

import segtune
from segtune.catalog import find_recipe, list_recipes, recipe_table
from segtune.errors import SegtuneError, UsageError

if TYPE_CHECKING:
    from segtune.data.config import DatasetConfig
    from segtune.data.doctor.examine import Diagnosis
    from segtune.data.transforms import TransformConfig
    from segtune.labels import LabelMap
    from segtune.segformer.image_processing_segformer import SegformerImageProcessor

RecipeOrPathArgument = Annotated[
    str, typer.Argument(metavar="RECIPE|PATH", help="A recipe, or the folder of a data set.")
]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or a shipped recipe's name.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value", help="Changes to the recipe.")
]
CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A folder such as runs/demo/best, or user/name[@revision].")
]
OverlaysOption = Annotated[
    Path | None, typer.Option(metavar="DIR", file_okay=False, help="Save image | truth | prediction here.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps, …; by default the best there is.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Images, or windows of one, in a forward pass.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
GroupOption = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX", help="Resample groups of images whose ids agree in what this finds (a video, a tile)."
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(min=0, help="Side of the windows an image is cut into; 0: none. Default: as the checkpoint says."),
]
StrideOption = Annotated[int | None, typer.Option(min=1, help="From window to window; default: 3/4 of --window.")]
TtaOption = Annotated[bool, typer.Option("--tta", help="Average over six scales and their mirror images: 12 passes.")]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and leaves with its exit code. SEGTUNE_TRACEBACK=1 shows the traceback of an error."""
    try:
        typer.main.get_command(_application()).main(args=argv, prog_name="segtune")
    except Exception as error:
        if os.environ.get("SEGTUNE_TRACEBACK") == "1":
            raise
        if isinstance(error, SegtuneError):
            _fail(str(error), error.exit_code)
        _fail(f"{type(error).__name__}: {error}\n(SEGTUNE_TRACEBACK=1 in the environment shows where it happened)", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _application() -> typer.Typer:
    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    app.callback(help="Fine-tune SegFormer: train a recipe, evaluate a checkpoint, predict masks.")(_configure)
    commands: tuple[Callable[..., None], ...] = (
        train,
        evaluate,
        compare,
        calibrate,
        predict,
        doctor,
        push,
        convert,
        bench,
    )
    for command in commands:
        app.command()(command)
    recipes = typer.Typer(rich_markup_mode=None)
    recipes.callback(invoke_without_command=True, help="List, show or copy the shipped recipes.")(_list)
    commands = (show, copy)
    for command in commands:
        recipes.command()(command)
    app.add_typer(recipes, name="recipes")
    data = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    data.callback(help="Look at the data of a recipe, or write it in another form.")(_no_options)
    data.command()(preview)
    data.command("convert")(convert_data)
    app.add_typer(data, name="data")
    return app


def _fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(exit_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"segtune {segtune.__version__}")
        raise typer.Exit


def _configure(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.getLogger("segtune").setLevel(logging.INFO if _is_main_process() else logging.ERROR)


def _hide_bars_of_libraries() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one for each checkpoint that is read or written


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by accelerate launch and torchrun


# train ---------------------------------------------------------------------------------------------------------------


def train(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Fine-tune what a recipe describes; the run folder keeps the weights, the metrics and the resolved recipe.

    Paths are relative to the current folder. Several processes: accelerate launch -m segtune train RECIPE …
    """
    from segtune import recipe as recipes

    _hide_bars_of_libraries()
    result = recipes.train(recipes.load_recipe(recipe, overrides or ()))
    stopped = result.get("stopped")
    if _is_main_process():
        typer.echo("\n".join(_stopped_lines(recipe, overrides or [], result) if stopped else _closing_lines(result)))
    if stopped:
        raise typer.Exit(3)


def _stopped_lines(recipe: str, overrides: Sequence[str], result: dict[str, Any]) -> list[str]:
    kept = [text for text in overrides if not text.startswith(("training.resume=", "training.overwrite="))]
    return [
        f"stopped at step {result['step']}, everything saved: {result['stopped']}",
        f"next: {shlex.join(['segtune', 'train', recipe, *kept, 'training.resume=auto'])}",
    ]


def _closing_lines(result: dict[str, Any]) -> list[str]:
    folder = Path(result["output_dir"])
    lines = []
    for metric, value in result["best"].items():
        if metric != "step":
            name = "mIoU" if metric == "mean_iou" else metric
            lines.append(f"best val {name} {value:.4f} at step {result['best']['step']}")
    lines.append(f"run folder: {folder}")
    if result.get("pushed"):
        lines.append(f"pushed to {result['pushed']}")
    split = next((split for split in ("test", "val") if split in result["splits"]), None)
    if split:
        words = ["segtune", "evaluate", str(folder / "best"), str(folder / "recipe.yaml"), "--split", split]
        lines.append(f"next: {shlex.join([*words, '--overlays', str(folder / 'overlays')])}")
    return lines


# evaluate ------------------------------------------------------------------------------------------------------------


def evaluate(
    checkpoint: CheckpointArgument,
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    as_json: JsonOption = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Keep the counts of each image: a run folder, or a file ending in .npz."),
    ] = None,
    group_by: GroupOption = None,
    boundary_width: Annotated[
        float, typer.Option(min=0, max=1, help="Of the band of boundary IoU, as a share of the image's diagonal.")
    ] = 0.02,
    overlays: OverlaysOption = None,
    limit_overlays: Annotated[int, typer.Option(min=1, help="How many overlays, spread over the split.")] = 12,
    window: WindowOption = None,
    stride: StrideOption = None,
    tta: TtaOption = False,
    batch_size: BatchOption = 1,
    device: DeviceOption = None,
) -> None:
    """Score a checkpoint on one split of a recipe's dataset, at the masks' own size, with error bars.

    Intervals are bootstrap intervals over images or, with --group-by, over groups of them.
    """
    from segtune import tables, uncertainty
    from segtune.data.references import sample_ids
    from segtune.evaluation import Evaluation
    from segtune.inference import evaluate_model
    from segtune.outputs import Comparisons
    from segtune.protocol import Protocol
    from segtune.recipe import load_recipe

    settings = load_recipe(recipe, overrides or ())
    rows, label_map = _open_split(settings.dataset, split)
    ids = sample_ids(rows)
    uncertainty.units_of(ids, group_by)
    kept = _file_to_save(save, split)
    model = _load(checkpoint, device)
    _check_same_labels(checkpoint, model.config, settings.dataset.path, label_map)
    pictures = Comparisons(overlays, label_map, ids, limit_overlays) if overlays else None
    processor = _processor(checkpoint, settings.transforms)
    protocol = Protocol.choose(processor, window, stride, tta)
    about = {"checkpoint": checkpoint, "recipe": recipe, "split": split, "protocol": str(protocol)}
    evaluation = Evaluation(label_map.names, label_map.ignore_index, detailed=True, boundary_width=boundary_width)
    evaluation.about = about | {"calibration_temperature": model.config.calibration_temperature}
    evaluate_model(
        model,
        rows,
        label_map,
        processor,
        evaluation=evaluation,
        protocol=protocol,
        batch_size=batch_size,
        on_image=pictures.save if pictures else None,
    )
    result = about | evaluation.scores() | {"intervals": uncertainty.intervals(evaluation, group_by=group_by)}
    if kept:
        evaluation.save(kept)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        tables.show(tables.evaluation_table(result), *tables.evaluation_lines(result))
    if kept:
        typer.echo(f"counts of each image: {kept}", err=as_json)
    if pictures:
        pictures.save_overview()
        typer.echo(f"overlays: {overlays} (overview.png first)", err=as_json)


def _file_to_save(save: Path | None, split: str) -> Path | None:
    """The file that --save names; refused before the work where it is there already."""
    from segtune.evaluation import file_name

    if save is None:
        return None
    path = save if save.suffix == ".npz" else save / file_name(split)
    if path.exists():
        raise UsageError(f"--save {save}: {path} exists already; remove it or name another file")
    return path


def _open_split(dataset: DatasetConfig, split: str) -> tuple[Any, LabelMap]:
    """The rows of one split of a data set, at hand, and its label map."""
    from segtune.data.sources import open_dataset

    opened, label_map = open_dataset(dataset.model_copy(update={"streaming": dataset.streaming and split != "train"}))
    if split not in opened:
        raise UsageError(f"--split {split}: {dataset.path} has {', '.join(opened)}")
    return opened[split], label_map


def _processor(checkpoint: str, transforms: TransformConfig) -> SegformerImageProcessor:
    """The one saved with the checkpoint, else what the recipe says."""
    from segtune.checkpoint import split_revision
    from segtune.inference import processor_for
    from segtune.segformer.image_processing_segformer import SegformerImageProcessor

    source, revision = split_revision(checkpoint)
    try:
        return SegformerImageProcessor.from_pretrained(source, **({"revision": revision} if revision else {}))
    except OSError:
        return processor_for(transforms)


def _check_same_labels(checkpoint: str, config: Any, path: str, label_map: LabelMap) -> None:
    from segtune.labels import LabelMap

    own = LabelMap.from_config(config)
    if own.names != label_map.names:
        raise UsageError(
            f"the labels disagree: {checkpoint} has {own.num_labels} ({', '.join(own.names)}), {path} has "
            f"{label_map.num_labels} ({', '.join(label_map.names)}); dataset.labels can name the checkpoint's"
        )


# compare -------------------------------------------------------------------------------------------------------------


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder, or a file of evaluate --save.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The other one.")],
    split: Annotated[
        str | None, typer.Option(help="Of run folders; by default test where both have it, else val.")
    ] = None,
    group_by: GroupOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell whether two runs differ on the same images: the difference of mIoU, its interval, what classes changed."""
    from segtune import tables, uncertainty
    from segtune.evaluation import Evaluation, find_evaluations

    paths = find_evaluations([run_a, run_b], split)
    first, second = map(Evaluation.load, paths)
    result = {"a": str(paths[0]), "b": str(paths[1])} | uncertainty.compare(first, second, group_by=group_by)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        names = (f"{letter}: {path}" for letter, path in zip("AB", paths, strict=True))
        tables.show(*names, tables.comparison_table(result), *tables.comparison_lines(result))


# calibrate -----------------------------------------------------------------------------------------------------------


def calibrate(
    checkpoint: CheckpointArgument,
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    split: Annotated[str, typer.Option(help="train, val or test; one that the model was not trained on.")] = "val",
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Fit a temperature that makes confidences honest, and store it in the checkpoint's config.json.

    Predictions stay as they are. Confidences (segtune evaluate, predict) are taken of logits divided by it.
    """
    from segtune.calibrate import config_file, fit_temperature, store_temperature
    from segtune.recipe import load_recipe

    settings = load_recipe(recipe, overrides or ())
    rows, label_map = _open_split(settings.dataset, split)
    config = config_file(checkpoint)
    model = _load(checkpoint, device).eval()
    _check_same_labels(checkpoint, model.config, settings.dataset.path, label_map)
    fit = fit_temperature(model, rows, label_map, _processor(checkpoint, settings.transforms))
    temperature = round(fit.temperature(), 4)
    store_temperature(config, temperature)
    result = {"checkpoint": checkpoint, "split": split, "pixels": fit.pixels, "temperature": temperature}
    result |= {"nll_before": fit.nll(1.0), "nll": fit.nll(temperature)}
    typer.echo(
        json.dumps(result)
        if as_json
        else f"temperature {temperature} on {fit.pixels} pixels of {split}: negative log-likelihood "
        f"{result['nll_before']:.4f} before, {result['nll']:.4f} now; stored in {config}"
    )


# predict -------------------------------------------------------------------------------------------------------------


def predict(
    checkpoint: CheckpointArgument,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Image files, folders of them, quoted globs, or videos.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Where the masks go.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also save NAME_overlay.png, of a video .mp4.")] = False,
    window: WindowOption = None,
    stride: StrideOption = None,
    overlap: Annotated[int | None, typer.Option(min=0, help="Instead of --stride: pixels that windows share.")] = None,
    tta: TtaOption = False,
    confidence: Annotated[
        Literal["png", "tif"] | None, typer.Option(help="Also save NAME_confidence: 8-bit png or 32-bit tif.")
    ] = None,
    polygons: Annotated[
        Literal["geojson", "coco", "labelme"] | None, typer.Option(help="Also save the regions as polygons.")
    ] = None,
    simplify: Annotated[float, typer.Option(min=0, help="Let polygons' borders move by so many pixels.")] = 0.0,
    min_region: Annotated[int, typer.Option(min=0, help="Give smaller regions to a neighbour, in polygons.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    batch_size: BatchOption = 1,
    device: DeviceOption = None,
) -> None:
    """Save a mask of class ids for each image: a palette PNG in the labels' colours, at the image's own size.

    Of a georeferenced TIFF, the mask is a TIFF in the same place. Of a video, there is a folder of masks.
    """
    from segtune import outputs
    from segtune.images import any_size
    from segtune.inference import processor_of
    from segtune.labels import LabelMap
    from segtune.predicting import predict_files
    from segtune.protocol import Protocol
    from segtune.segmenter import Segmenter

    wanted = outputs.Wanted(overlay, confidence, polygons, simplify, min_region)
    paths = outputs.find_images(images)
    with any_size():
        targets = outputs.plan_targets(paths, output, wanted, overwrite)
        model = _load(checkpoint, device)
        processor = processor_of(model)
        protocol = Protocol.choose(processor, window, _stride(window, stride, overlap), tta)
        segmenter = Segmenter(model, processor, protocol, batch_size)
        masks = predict_files(segmenter, LabelMap.from_config(model.config), paths, targets, output, wanted)
    typer.echo(f"{masks} mask{'s' if masks > 1 else ''} in {output}")


def _stride(window: int | None, stride: int | None, overlap: int | None) -> int | None:
    if overlap is None:
        return stride
    if stride is not None or not window:
        raise UsageError(f"--overlap {overlap} goes with --window, and in the place of --stride")
    return window - overlap


def _load(checkpoint: str, device: str | None) -> Any:
    import torch

    from segtune.checkpoint import load_model
    from segtune.inference import best_device

    _hide_bars_of_libraries()
    try:
        return load_model(checkpoint).to(torch.device(device or best_device()))
    except RuntimeError as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error


# push, convert -------------------------------------------------------------------------------------------------------


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its best/ or final/.")],
    repo: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="By default that of the recipe, or the folder's name.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Where the repository does not exist yet.")] = False,
    branch: Annotated[str | None, typer.Option(help="Made where it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Push as a pull request.")] = False,
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Add the network's code, for trust_remote_code=True.")
    ] = False,
    license: Annotated[str | None, typer.Option(help="Of weights that inherit none, e.g. apache-2.0.")] = None,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Leave out pictures of the data.")] = False,
) -> None:
    """Push a run to the Hub: the best weights, a model card, the recipe, metrics, report and overlays."""
    from segtune.hub import push_run

    given = {"repo": repo, "private": private, "branch": branch, "with_code": with_code, "license": license}
    settings = {key: value for key, value in given.items() if value}
    url = push_run(run, create_pr=create_pr, **settings, **({"pictures": False} if no_pictures else {}))
    typer.echo(f"pushed {run} to {url}")


def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE.pth", help="A checkpoint of mmseg or NVlabs/SegFormer.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder that does not exist yet.")],
    layout: Annotated[str, typer.Option("--from", help="mmseg, nvlabs, or auto: by the names in the file.")] = "auto",
    encoder_only: Annotated[bool, typer.Option("--encoder-only", help="Leave the decode head out.")] = False,
) -> None:
    """Write a checkpoint of others as ours: weights, config, image processor and a card that states the licence."""
    from segtune.segformer.originals import convert_original

    _hide_bars_of_libraries()
    if layout not in ("auto", "mmseg", "nvlabs"):
        raise UsageError(f"--from {layout}: mmseg, nvlabs or auto")
    model = convert_original(source, output, cast(Any, layout), encoder_only=encoder_only)
    labels = f", {model.config.num_labels} labels" if hasattr(model, "decode_head") else ""
    typer.echo(f"{output}: {type(model).__name__}{labels}, {model.num_parameters() / 1e6:.1f} million parameters")
    typer.echo(f"next: segtune train RECIPE model.name={shlex.quote(str(output))}")


# doctor --------------------------------------------------------------------------------------------------------------


def doctor(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|PATH", help="A recipe, or a folder of images and masks.")],
    overrides: OverridesArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE", dir_okay=False, help="Also write one page with pictures.")
    ] = None,
    split_file: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write a split without the faulty samples.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A trained model that is asked which masks it doubts: runs/demo/best.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Also try the recipe's model on a few samples.")] = False,
    device: DeviceOption = None,
) -> None:
    """Look for faults in a data set before it is trained on; each finding says what mends it. Exit code 1: errors."""
    from segtune import checkup
    from segtune.doctor_page import check_page, write_page
    from segtune.recipe import load_recipe_or_data

    _hide_bars_of_libraries()
    settings = load_recipe_or_data(recipe, overrides or ())
    if html:
        check_page(html)
    if split_file:
        checkup.check_split(split_file)
    diagnosis = checkup.diagnose(settings, try_model=dry_run, checkpoint=checkpoint, device=device)
    typer.echo(json.dumps(diagnosis.to_dict()) if as_json else "\n".join(_finding_lines(diagnosis)))
    if html:
        write_page(diagnosis, html)
        typer.echo(f"page: {html}", err=as_json)
    if split_file:
        left = ", ".join(f"{number} {split}" for split, number in checkup.write_split(diagnosis, split_file).items())
        typer.echo(f"split file: {split_file} ({left}); use it with dataset.split_file={split_file}", err=as_json)
    if diagnosis.count("error"):
        raise typer.Exit(1)


def _finding_lines(diagnosis: Diagnosis, limit: int = 3) -> Iterator[str]:
    """The findings as text, each with its first files and what mends it."""
    from segtune.data.doctor.findings import count, sentence

    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    colors = {"error": "red", "warning": "yellow", "info": "blue"}
    for finding in diagnosis.findings:
        title = typer.style(f"{finding.severity:<9}", fg=colors[finding.severity], bold=True)
        yield title + typer.style(finding.code, bold=True)
        yield from _indented(sentence(finding.message), width)
        if finding.files:
            more = f" and {len(finding.files) - limit} more" if len(finding.files) > limit else ""
            yield from _indented(f"in {', '.join(finding.files[:limit])}{more}", width)
        for line in finding.mend:
            yield from _indented(f"→ {line}", width)
        yield ""
    yield f"{diagnosis.case.scan.root}: " + ", ".join(f"{n} {split}" for split, n in diagnosis.samples.items())
    yield f"{count(diagnosis.count('error'), 'error')}, {count(diagnosis.count('warning'), 'warning')}"
    if any(finding.drop for finding in diagnosis.findings):
        yield "faulty samples can be left out: --split-file FILE, then dataset.split_file=FILE"


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=" " * 9, subsequent_indent=" " * 9, break_on_hyphens=False)


# bench ---------------------------------------------------------------------------------------------------------------


def bench(
    variants: Annotated[str, typer.Option(help="Of the network, separated by commas: b0 to b5.")] = "b0",
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint instead of random weights.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Side of the square input, pixels.")] = 512,
    labels: Annotated[int, typer.Option(min=1, help="Classes.")] = 150,
    batch_size: BatchOption = 1,
    train_batch_size: Annotated[int, typer.Option(min=1, help="Images in a training step.")] = 1,
    dtype: Annotated[str, typer.Option(help="fp32, or bf16 for autocast.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, …")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of timings.")] = 7,
    compile_too: Annotated[bool, typer.Option("--compile", help="Also time our forward under torch.compile.")] = False,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", dir_okay=False, help="Also draw time and memory against the size.")
    ] = None,
    plot_sizes: Annotated[str, typer.Option(help="Sides for --plot, separated by commas.")] = "256,512,1024,2048",
) -> None:
    """Compare with transformers' SegFormer on the same weights, side by side: time, memory, work, equality."""
    from segtune import bench as benches

    _hide_bars_of_libraries()
    settings = [
        benches.Bench(
            variant, checkpoint, size, labels, batch_size, train_batch_size, dtype, device, repeats, compile_too
        )
        for variant in ([variants] if checkpoint else variants.lower().split(","))
    ]
    sizes = _integers(plot_sizes, "--plot-sizes")
    results = [benches.run_bench(one) for one in settings]
    curve = benches.cost_curve(settings[0], sizes) if plot else None
    if plot and curve:
        benches.plot_curve(curve, f"SegFormer {settings[0].name}, {labels} labels, {dtype}, {device}", plot)
    typer.echo(json.dumps({"results": results, "curve": curve}) if as_json else benches.table(results))
    if plot:
        typer.echo(f"cost curve: {plot}", err=as_json)


def _integers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: whole numbers separated by commas, such as 256,512") from None


# data ----------------------------------------------------------------------------------------------------------------


def _no_options() -> None:
    pass


def preview(
    recipe: RecipeOrPathArgument,
    overrides: OverridesArgument = None,
    output: Annotated[Path, typer.Option(metavar="PNG", dir_okay=False, help="Where the sheet goes.")] = Path(
        "preview.png"
    ),
    count: Annotated[int, typer.Option(min=1, help="Training samples.")] = 16,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Draw the first training samples of a run as it will see them: cropped, augmented, with their classes."""
    from segtune import preview as previews
    from segtune.data.sources import open_dataset
    from segtune.recipe import load_recipe_or_data, with_channels

    settings = load_recipe_or_data(recipe, overrides or ())
    _refuse_existing(output, force)
    dataset, label_map = open_dataset(settings.dataset)
    if "train" not in dataset:
        raise UsageError(f"{settings.dataset.path}: no training images, only {', '.join(dataset)}")
    settings = with_channels(settings, dataset["train"])
    sheet = previews.preview(dataset["train"], label_map, settings.transforms, seed=settings.training.seed, count=count)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, format="PNG")
    typer.echo(f"{output}")


def convert_data(
    recipe: RecipeOrPathArgument,
    overrides: OverridesArgument = None,
    to: Annotated[
        str, typer.Option(metavar="FORM", help="folder, parquet, or hub: parquet, then uploaded.")
    ] = "folder",
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Where it is written; for hub: converted/REPO.")
    ] = None,
    repo: Annotated[str | None, typer.Option(metavar="USER/NAME", help="The Hub's data set repository.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    tile: Annotated[int | None, typer.Option(min=32, help="Cut larger images into tiles of this side, pixels.")] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Of neighbouring tiles of the training split, pixels.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each processor.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Write a data set anew: id masks, images as they are, labels.json, a data card. Goes on where it was stopped."""
    from segtune.data import convert as conversions
    from segtune.data.card import Origin
    from segtune.data.sources import open_dataset
    from segtune.recipe import load_recipe_or_data

    if to not in ("folder", "parquet", "hub"):
        raise UsageError(f"--to {to}: folder, parquet or hub")
    if (to == "hub") != (repo is not None):
        raise UsageError("--to hub needs --repo USER/NAME" if to == "hub" else "--repo goes with --to hub")
    folder = output or (Path("converted") / repo if repo else None)
    if folder is None:
        raise UsageError("--output DIR: name the folder to write")
    settings = load_recipe_or_data(recipe, overrides or ())
    conversion = conversions.Conversion(
        *open_dataset(settings.dataset.model_copy(update={"streaming": False})),
        folder,
        "folder" if to == "folder" else "parquet",
        tile,
        overlap,
        workers or os.cpu_count() or 1,
        Origin.of(settings.dataset.path),
    )
    counts = conversions.convert(conversion)
    result: dict[str, Any] = {"output": str(folder), "samples": {split: n.samples for split, n in counts.items()}}
    if repo:
        from segtune.hub import push_folder

        message = "Upload with segtune data convert"
        result["repo"] = push_folder(folder, repo, "dataset", private=private, message=message)
    shown = ", ".join(f"{samples} {split}" for split, samples in result["samples"].items())
    where = result.get("repo", folder)
    typer.echo(json.dumps(result) if as_json else f"{shown} in {where} ({conversions.CARD} describes them)")


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; name another file, or say --force to overwrite it")


# recipes -------------------------------------------------------------------------------------------------------------


def _list(
    context: typer.Context,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of recipes/README.md.")] = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    if markdown:
        typer.echo(recipe_table(list_recipes()), nl=False)
        return
    for recipe in list_recipes():
        typer.echo(f"{recipe.name}\n  command  {recipe.command}\n  cost     {recipe.cost}\n  result   {recipe.result}")


def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a recipe."""
    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


def copy(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A file or a folder.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Copy a recipe, to change it: by default into the current folder."""
    source = find_recipe(name)
    target = destination / source.name if destination.is_dir() else destination
    _refuse_existing(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    typer.echo(f"{target}")
