"""From settings and files to a model, and back: the start of a run, its `best/` and `final/`, its training states."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file

from segtune.adapt import LoraConfig, add_lora, merged, save_adapter, set_input_channels
from segtune.errors import DataError, UsageError
from segtune.labels import LabelMap
from segtune.retries import fault_of_hub
from segtune.section import Section
from segtune.segformer.configuration_segformer import STAGE_FIELDS, SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.sharding import part_of, whole

logger = logging.getLogger(__name__)

STATE_FILE, MANIFEST_FILE = "training_state.pt", "manifest.json"
WEIGHTS_FILE, RECIPE_FILE = "model.safetensors", "recipe.yaml"


class ModelConfig(Section):
    """The `model` section of a recipe."""

    name: str | None = Field(
        None, description="Checkpoint folder or Hub id (user/name, or user/name@revision) to start from; null = random."
    )
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = Field("b0", description="Architecture for random weights.")
    num_labels: Literal[1] | None = Field(
        None, description="1 = one logit and a binary loss, for a label map of two classes."
    )
    config: dict[str, Any] = Field(
        {}, description="Fields of SegformerConfig that differ from the preset; a checkpoint keeps those of its stages."
    )
    lora: LoraConfig | None = Field(None, description="Train low-rank updates and the head only; null = all weights.")
    input_channels: Literal["inflate", "average", "random"] = Field(
        "inflate", description="The first convolution of a checkpoint that reads another number of channels."
    )

    @model_validator(mode="after")
    def _check_fields(self) -> ModelConfig:
        owned = {"num_labels", "id2label", "label2id", "label_map", "semantic_loss_ignore_index"} & set(self.config)
        if owned:
            raise ValueError(f"config sets {', '.join(sorted(owned))}, which the label map decides")
        try:
            SegformerConfig.from_variant(self.variant, **self.config)
        except TypeError as error:
            raise ValueError(str(error)) from None
        if self.lora is not None and self.name is None:
            raise ValueError("lora adapts a checkpoint: name one, such as name=nvidia/mit-b0")
        return self


def build_model(config: ModelConfig, label_map: LabelMap, seed: int = 0) -> SegformerForSemanticSegmentation:
    """A model whose head and configuration follow the label map; what starts fresh is drawn from `seed`.

    Raises:
        UsageError: the checkpoint is not there or fits no SegFormer; one logit for other than two classes.
    """
    fields = label_map.config_fields()
    if config.num_labels == 1:
        if label_map.num_labels != 2:
            raise UsageError(
                f"model.num_labels=1 is for two classes, but the label map has {label_map.num_labels}: "
                f"{', '.join(label_map.names)}"
            )
        name = label_map.names[1]
        fields |= {"id2label": {0: name}, "label2id": {name: 0}}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if config.name is None:
            return SegformerForSemanticSegmentation(
                SegformerConfig.from_variant(config.variant, **config.config, **fields)
            )
        settings = {key: value for key, value in config.config.items() if key not in STAGE_FIELDS}
        if ignored := sorted(config.config.keys() - settings.keys()):
            logger.warning("model.config: %s describes random weights; %s has its own", ", ".join(ignored), config.name)
        channels = settings.pop("num_channels", None)
        model = load_model(config.name, ignore_mismatched_sizes=True, **settings, **fields)
        if channels is not None:
            set_input_channels(model, channels, config.input_channels)
        if config.lora is not None:
            add_lora(model, config.lora, base=split_revision(config.name)[0])
    model.name_or_path = model.config.name_or_path = ""  # no longer that checkpoint, nor its image processor's
    return model


def load_model(name: str | Path, **kwargs: Any) -> SegformerForSemanticSegmentation:
    """`SegformerForSemanticSegmentation.from_pretrained` with one clear message where the checkpoint is missing.

    Args:
        name: a folder with `config.json` and `model.safetensors`, or a Hub id `user/name` or `user/name@revision`.
        kwargs: what `from_pretrained` takes: `revision`, `cache_dir`, `local_files_only`, fields of the config, …

    Raises:
        UsageError: no such checkpoint, or one that is no SegFormer.
        DataError: the Hub does not hand it out, there is no space for it, or its pickle would run code.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        inside = [f"{path / sub}" for sub in ("best", "final") if (path / sub / "config.json").is_file()]
        hint = f"did you mean {inside[0]}?" if inside else "a checkpoint folder has a config.json and model.safetensors"
        raise UsageError(f"{path} is not a checkpoint: {hint}")
    if not path.exists() and (path.is_absolute() or str(name).count("/") != 1 or str(name).startswith(".")):
        raise UsageError(f"checkpoint {name} does not exist: give a folder, or a Hub id such as nvidia/mit-b0")
    source, revision = split_revision(name)
    kwargs |= {"revision": revision} if revision else {}
    try:
        return SegformerForSemanticSegmentation.from_pretrained(source, **kwargs)
    except pickle.UnpicklingError as error:
        raise DataError(str(error)) from error
    except (OSError, ValueError, RuntimeError) as error:
        if fault := fault_of_hub(error):
            raise DataError(f"checkpoint {name} cannot be fetched: {fault}") from error
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"checkpoint {name} cannot be loaded: {first} "
            "(a folder must hold config.json and model.safetensors; a Hub id needs the network or a filled cache; "
            "model.name=null starts from random weights)"
        ) from error


def split_revision(name: str | Path) -> tuple[str, str | None]:
    """A folder or Hub id, and the revision that `user/name@revision` names."""
    text = str(name)
    if Path(text).exists() or "@" not in text:
        return text, None
    source, _, revision = text.rpartition("@")
    return source, revision


def save_model(folder: Path, model: SegformerForSemanticSegmentation, processor: SegformerImageProcessor) -> None:
    """Write what `from_pretrained` needs, all at once: a reader sees the old folder or the new one.

    Of a model with adapters: the merged network, and the adapters with the head in `adapter/`.
    """
    adapted = hasattr(model, "peft_config")

    def write(target: Path) -> None:
        (merged(model) if adapted else model).save_pretrained(target)
        if adapted:
            save_adapter(model, target / "adapter")
        processor.save_pretrained(target)

    write_folder(folder, write)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder under a temporary name, then put it in the place of `folder`."""
    temporary, previous = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    if folder.exists():
        folder.rename(previous)
    temporary.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # a file system that cannot sync folders
        pass
    finally:
        os.close(descriptor)


def save_state(
    folder: Path,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    recipe: str | None = None,
) -> None:
    """Write all that a resumed run needs: weights, optimiser, loss scaler, every process's random state, `state`.

    All processes call this, the main one writes.
    """
    content = {
        "optimizer": whole(optimizer.state_dict()),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "random": accelerator.gather_for_metrics([_random_state()], use_gather_object=True),
        "state": whole(state),
    }
    weights = whole(accelerator.unwrap_model(model).state_dict())
    if not accelerator.is_main_process:
        return

    def write(target: Path) -> None:
        save_file({name: value.contiguous() for name, value in weights.items()}, target / WEIGHTS_FILE)
        torch.save(content, target / STATE_FILE)
        if recipe is not None:
            (target / RECIPE_FILE).write_text(recipe, encoding="utf-8")
        files = {file.name: _fingerprint(file) for file in sorted(target.iterdir())}
        (target / MANIFEST_FILE).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")

    write_folder(folder, write)


def load_state(
    folder: Path, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put weights, optimiser, scaler and this process's random state back; returns `state`.

    Raises:
        DataError: a file is missing or torn (see `check_state`).
    """
    check_state(folder)
    weights = load_file(folder / WEIGHTS_FILE)
    content = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    network = accelerator.unwrap_model(model)
    own = network.state_dict()
    network.load_state_dict({name: part_of(value, own.get(name, value)) for name, value in weights.items()})
    optimizer.load_state_dict(content["optimizer"])
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = part_of(value, parameter)
    if accelerator.scaler is not None and content["scaler"] is not None:
        accelerator.scaler.load_state_dict(content["scaler"])
    if len(content["random"]) == accelerator.num_processes:
        _set_random_state(content["random"][accelerator.process_index])
    return dict(content["state"])


def check_state(folder: Path) -> None:
    """Raise DataError where a training state is not byte by byte what was written."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder} is no complete training state: {MANIFEST_FILE} is missing or torn") from None
    if not expected.keys() >= {WEIGHTS_FILE, STATE_FILE}:
        raise DataError(f"{folder} is no complete training state: {MANIFEST_FILE} does not list all files")
    for name, (size, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file} is missing")
        if file.stat().st_size != size:
            raise DataError(f"{file} has {file.stat().st_size} of {size} bytes")
        if _fingerprint(file)["sha256"] != digest:
            raise DataError(f"{file} is not what was written: its checksum differs")


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": _sha256(opened)}


def _sha256(opened: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := opened.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def recover(folder: Path) -> None:
    """Finish what `write_folder` left half done when its process was killed: what was being replaced comes back."""
    temporary, previous = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    if previous.is_dir() and not folder.exists():
        previous.rename(folder)
    for leftover in (temporary, previous):
        shutil.rmtree(leftover, ignore_errors=True)


def _random_state() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def saved_states(folder: Path) -> list[Path]:
    """The training states below `folder`, oldest first; any may be torn (`check_state`)."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), key=lambda path: (len(path.name), path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that was cut off is left out."""
    objects = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return objects
