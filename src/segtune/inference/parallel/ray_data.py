"""Prediction on a Ray cluster (the extra `ray`): corpora in object stores, handed to actors batch after batch.

An actor holds the network on a GPU or a core. It copies the images of a batch to its machine, writes what
`segtune predict` writes, and copies that to the output. Ray gives the batch of an actor that dies to another one, and
starts a new actor; what is written twice is the same file with the same content.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from segtune.bars import progress_bar
from segtune.errors import DataError, SegtuneError, UsageError, causes, listed
from segtune.imageio.object_store import (
    existing_files,
    fetch_stored,
    is_stored,
    list_stored,
    read_stored,
    write_stored,
)
from segtune.imageio.raster import any_size
from segtune.imageio.read import is_picture, open_picture
from segtune.imageio.video import is_video
from segtune.inference.device import Precision, best_device, to_device
from segtune.inference.outputs import Wanted, find_images, plan_targets
from segtune.inference.parallel.predict_share import WORK, mask_settings
from segtune.inference.parallel.processes import SETTINGS, refuse_other_settings, settings_note
from segtune.inference.predict_files import predict_files
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap

LOCAL = "local"
UNIT = 32  # images that an actor is given at once, and that are lost with it
PATIENCE = 10.0  # seconds until a cluster's address that does not answer counts as wrong
TABLE = ".parquet"  # an output that ends so is a folder of tables
MASKS = (".png", ".tif")


class Job(NamedTuple):
    """What every actor is told.

    Attributes:
        device: None for the GPU that the cluster gives an actor, else a core.
        output: the folder of the masks, or with the suffix `.parquet` that of tables; an address or an absolute path.
    """

    protocol: InferenceProtocol
    batch_size: int
    precision: Precision
    device: str | None
    wanted: Wanted
    output: str

    @property
    def is_table(self) -> bool:
        return self.output.endswith(TABLE)


def check_job(output: str, wanted: Wanted, overwrite: bool) -> None:
    """Raise UsageError for what is not made on Ray, before anything is loaded."""
    _import_ray()
    if overwrite:
        raise UsageError("--overwrite does not go with --ray: remove what is to be made anew, and say --resume")
    if wanted.polygons in ("coco", "labelme"):
        raise UsageError(f"--polygons {wanted.polygons} does not go with --ray, which writes geojson")
    if output.endswith(TABLE) and (wanted.overlay or wanted.confidence or wanted.polygons):
        raise UsageError(f"--output {output}: tables hold masks alone; name a folder for more")


def find_stored_images(patterns: Sequence[str]) -> list[str]:
    """The images of files, folders and patterns, at addresses and on this machine, each once.

    Raises:
        UsageError: a pattern without an image, or a video.
        DataError: a store does not answer, or has no such bucket.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if is_stored(pattern):
            matches = list_stored(pattern, is_picture)
        else:
            matches = [os.path.abspath(path) for path in find_images([pattern])]
        if not matches:
            raise UsageError(f"{pattern}: no images there")
        found |= dict.fromkeys(matches)
    if videos := [name for name in found if is_video(Path(name))]:
        raise UsageError(f"{videos[0]}: --ray takes images; predict videos without it")
    return list(found)


def base_names(images: Sequence[str]) -> list[str]:
    """Of each image the path of its mask below the output, without an ending: as `plan_targets` names it."""
    paths = [PurePosixPath(image.partition("://")[2] if is_stored(image) else image) for image in images]
    if len({image.partition("://")[0] if is_stored(image) else "" for image in images}) > 1:
        raise UsageError("--ray takes images of one store, or of this machine: predict the others in a further command")
    common = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(common) for path in paths]
    uses = Counter(name.with_suffix("") for name in names)
    return [str(name.with_suffix("") if uses[name.with_suffix("")] == 1 else name) for name in names]


def predict_on_ray(
    address: str, segmenter: Segmenter, label_map: LabelMap, images: Sequence[str], job: Job, *, resume: bool = False
) -> tuple[list[str], int]:
    """Segment images on a Ray cluster, each once, whatever actors die.

    Args:
        address: of the cluster, as `ray.init` takes it; "local" starts one on this machine for the call.
        segmenter: its model, on the CPU, is sent to the actors.
        images: see `find_stored_images`.
        resume: images of which everything is there are left out.

    Returns:
        Where the mask of each image is (a file, or a table), and how many images were done before.

    Raises:
        UsageError: Ray is not installed or the cluster out of reach; something is there and `resume` is not set, or it
            was made with other weights.
        DataError: images cannot be read, which is told at the end: the others are done; or a store fails.
    """
    ray = _import_ray()
    names = base_names(images)
    before = _masks(job, images, names)
    if before and not resume:
        raise UsageError(_refusal(next(iter(before.values())), len(set(before.values()))))  # a table holds many
    note, settings = f"{job.output}/{WORK}/{SETTINGS}", mask_settings(segmenter, job.wanted)
    refuse_other_settings(read_stored(note), settings, "masks", note)
    rows = [{"image": image, "name": name} for image, name in zip(images, names, strict=True) if name not in before]
    if not rows:
        return [before[name] for name in names], len(before)
    with _cluster(ray, address), _one_line(ray):
        write_stored(note, settings_note(settings).encode())
        faults = _run(ray, segmenter, label_map, job, rows)
    if faults:
        shown = listed([f"{image}: {fault}" for image, fault in faults.items()], 3, "\n")
        raise DataError(f"{len(faults)} of {len(rows)} images could not be predicted, the others are done:\n{shown}")
    after = _masks(job, images, names)
    if missing := [name for name in names if name not in after]:
        raise DataError(f"{job.output}: {listed(missing, 3)} should be there and are not: give the command once more")
    return [after[name] for name in names], len(before)


def _refusal(first: str, count: int) -> str:
    more = f" and {count - 1} more exist" if count > 1 else " exists"
    return f"{first}{more} already; name another folder, or say --resume"


def _masks(job: Job, images: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Where the mask of each image is of which everything is there, by name."""
    found = existing_files(job.output)
    if job.is_table:
        tables = sorted(name for name in found if name.endswith(TABLE))
        tabled = {image: f"{job.output}/{table}" for table in tables for image in _column(f"{job.output}/{table}")}
        return {name: tabled[image] for image, name in zip(images, names, strict=True) if image in tabled}
    wanted = job.wanted
    endings = ["_overlay.png"] if wanted.overlay else []
    endings += [f"_confidence.{wanted.confidence}"] if wanted.confidence else []
    endings += [".geojson"] if wanted.polygons else []
    return {
        name: f"{job.output}/{name}{mask}"
        for name in names
        for mask in MASKS
        if name + mask in found and all(name + ending in found for ending in endings)
    }


def _column(table: str) -> list[str]:
    import pyarrow.parquet

    content = read_stored(table)
    assert content is not None
    return list(pyarrow.parquet.read_table(io.BytesIO(content), columns=["image"])["image"].to_pylist())


def _run(ray: Any, segmenter: Segmenter, label_map: LabelMap, job: Job, rows: list[dict[str, str]]) -> dict[str, str]:
    """Let actors predict the rows; returns what is wrong with images, by image."""
    resources = ray.cluster_resources()
    gpus = 0 if job.device == "cpu" else int(resources.get("GPU", 0))
    units = -(-len(rows) // UNIT)
    actors = max(1, min(gpus or int(resources["CPU"]), units))
    network = ray.put((segmenter.model, segmenter.processor))
    results = ray.data.from_items(rows, override_num_blocks=units).map_batches(
        Predictor,
        fn_constructor_kwargs={"network": [network], "label_map": label_map, "job": job},
        batch_size=UNIT,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=0 if gpus else 1,
        num_gpus=1 if gpus else 0,
    )
    faults = {}
    with progress_bar(total=len(rows), desc="predict") as bar:
        for row in results.iter_rows():
            if row["fault"]:
                faults[row["image"]] = row["fault"]
            bar.update()
    return faults


class Predictor:
    """An actor: predicts batches of images and writes what is wanted of them.

    Args:
        network: the model and its processor, as a reference in a list, which Ray does not resolve by itself.
    """

    def __init__(self, network: list[Any], label_map: LabelMap, job: Job) -> None:
        ray = _import_ray()
        model, processor = ray.get(network[0])
        model = to_device(model, job.device or (best_device() if ray.get_gpu_ids() else "cpu"))
        self.segmenter = Segmenter(model, processor, job.protocol, job.batch_size, precision=job.precision)
        self.label_map, self.job = label_map, job

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Of a batch of "image" (address) and "name" (of its outputs): "image" and "fault", empty where it is done."""
        images, names = batch["image"].tolist(), batch["name"].tolist()
        with tempfile.TemporaryDirectory(prefix="segtune-") as folder, any_size():
            pairs = enumerate(zip(images, names, strict=True))
            works = [_Work(image, name, Path(folder) / str(number)) for number, (image, name) in pairs]
            faults = self._predict(works)
            self._hand_over([work for work in works if work.image not in faults])
        return {"image": images, "fault": [faults.get(image, "") for image in images]}

    def _predict(self, works: Sequence[_Work]) -> dict[str, str]:
        """Write the outputs of images to this machine; returns what is wrong with those that cannot be read."""
        faults = {}
        here = []
        for work in works:
            try:
                work.bring(self.job.wanted)
                here.append(work)
            except DataError as error:
                faults[work.image] = str(error)
        try:
            self._write(here)
        except DataError:  # of one of them: each by itself then, so that the others are done
            for work in here:
                try:
                    self._write([work])
                except DataError as error:
                    faults[work.image] = str(error).replace(str(work.source), work.image)
        return {image: fault.removeprefix(f"{image}: ") for image, fault in faults.items()}

    def _write(self, works: Sequence[_Work]) -> None:
        targets = [work.targets for work in works]
        sources = [work.source for work in works]
        predict_files(self.segmenter, self.label_map, sources, targets, Path(), self.job.wanted, progress=False)

    def _hand_over(self, works: Sequence[_Work]) -> None:
        """Copy outputs to where all of them are."""
        if self.job.is_table:
            if works:
                digest = hashlib.sha256("\n".join(work.image for work in works).encode()).hexdigest()[:16]
                write_stored(f"{self.job.output}/{digest}{TABLE}", _table(works))
            return
        for work in works:
            for path in reversed(work.targets.paths):  # the mask at last
                ending = path.name.removeprefix(work.stem)
                write_stored(f"{self.job.output}/{work.name}{ending}", path.read_bytes())


class _Work:
    """An image on the machine of an actor, and where its outputs are until they are handed over."""

    def __init__(self, image: str, name: str, folder: Path) -> None:
        self.image, self.name, self.folder = image, name, folder
        self.source = folder / "in" / PurePosixPath(image).name if is_stored(image) else Path(image)
        self.stem = self.source.with_suffix("").name

    def bring(self, wanted: Wanted) -> None:
        if is_stored(self.image):
            fetch_stored(self.image, self.source)
        (self.targets,) = plan_targets([self.source], self.folder / "out", wanted)


def _table(works: Sequence[_Work]) -> bytes:
    """A table of "image", "height", "width" and "mask", the bytes of a PNG (of a georeferenced image, of a TIFF)."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, list[Any]] = {"image": [], "height": [], "width": [], "mask": []}
    for work in works:
        with open_picture(work.targets.mask) as mask:
            row = (work.image, mask.height, mask.width, work.targets.mask.read_bytes())
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


@contextmanager
def _cluster(ray: Any, address: str) -> Iterator[None]:
    """A connection to the cluster, or a cluster of this machine; one that the program made itself stays."""
    if ray.is_initialized():
        yield
        return
    _refuse_silence(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options |= {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray {address}: no cluster there ({' '.join(str(error).split())[:200]})") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    with redirect_stdout(sys.stderr):  # Ray prints there that a worker died, some of it at the end
        try:
            yield
        finally:
            ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Ray itself waits for minutes for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--ray {address}: no cluster there ({error})") from error


@contextmanager
def _one_line(ray: Any) -> Iterator[None]:
    """A fault of the input or of a store that an actor met is told as it would be without Ray."""
    try:
        yield
    except ray.exceptions.RayError as error:
        for link in causes(error):
            cause = getattr(link, "cause", link)
            if isinstance(cause, SegtuneError) and not isinstance(cause, ray.exceptions.RayError):
                raise type(cause)(str(cause)) from error
        raise


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise UsageError("--ray needs the package ray: pip install 'segtune[ray]'") from None
    return ray
