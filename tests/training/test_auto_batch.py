from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from segtune.data.config import TransformConfig
from segtune.data.dataset import DatasetConfig, find_label_map, load_segmentation_dataset
from segtune.errors import DataError, UsageError
from segtune.finetune import train
from segtune.inference.processor import processor_from_transforms
from segtune.recipe.recipe import load_recipe
from segtune.recipe.yaml_file import parse_yaml
from segtune.training import auto_batch
from segtune.training.auto_batch import TrialSteps, divisors, find_batch
from segtune.training.checkpoint import save_model
from segtune.training.config import ModelConfig, TrainingConfig
from segtune.training.distributed import make_accelerator
from segtune.training.model import build_model
from segtune.training.teachers.teacher import Teacher
from support.command_runs import TINY as SMALL
from support.workers.common import TINY

TRANSFORMS = TransformConfig(crop_size=64)
NO_MEMORY = "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …"


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    return load_segmentation_dataset("segtune://earth")["train"], find_label_map(DatasetConfig(path="segtune://earth"))


def trials(data: tuple[Any, Any], **fields: Any) -> TrialSteps:
    rows, label_map = data
    config = TrainingConfig(device="cpu", **fields)
    model = build_model(ModelConfig(config=TINY), label_map)
    accelerator = make_accelerator("cpu")
    return TrialSteps(model, config, rows, label_map, TRANSFORMS, processor_from_transforms(TRANSFORMS), accelerator)


def found(data: tuple[Any, Any], **fields: Any) -> TrainingConfig:
    rows, label_map = data
    config = TrainingConfig(device="cpu", batch_size="auto", **fields)
    model, processor = build_model(ModelConfig(config=TINY), label_map), processor_from_transforms(TRANSFORMS)
    return find_batch(model, config, rows, label_map, TRANSFORMS, processor)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what stands in the place of `TrialSteps.seconds` stays here."""
    monkeypatch.setattr(auto_batch, "largest_elsewhere", TrialSteps.largest)


def refuse_above(limit: int) -> Any:
    def seconds(trial: TrialSteps, batch_size: int, accumulation_steps: int) -> list[float]:
        assert accumulation_steps in (1, 2)
        if batch_size > limit:
            raise RuntimeError(NO_MEMORY)
        return [0.0]

    return seconds


def test_divisors_come_from_the_smallest_on() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12] and divisors(7) == [1, 7] and divisors(1) == [1]


def test_trial_steps_leave_the_model_as_it_was(data: tuple[Any, Any]) -> None:
    trial = trials(data, ema_decay=0.9)
    before = {name: value.clone() for name, value in trial.model.state_dict().items()}
    took = trial.seconds(2, accumulation_steps=2, steps=2)
    assert len(took) == 2 and min(took) > 0
    assert trial.fits(3)
    after = trial.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in trial.model.parameters())


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("limit", "batch", "steps"), [(8, 8, 1), (7, 4, 2), (3, 2, 4), (1, 1, 8)])
def test_the_largest_that_fits_and_the_images_of_a_step_stay(
    data: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, limit: int, batch: int, steps: int
) -> None:
    monkeypatch.setattr(TrialSteps, "seconds", refuse_above(limit))
    config = found(data, learning_rate=1e-3)
    assert (config.batch_size, config.accumulation_steps, config.effective_batch_size) == (batch, steps, None)
    assert config.learning_rate == 1e-3
    twelve = found(data, effective_batch_size=12)
    assert twelve.micro_batch == max(n for n in (1, 2, 3, 4, 6, 12) if n <= limit)
    assert twelve.micro_batch * twelve.accumulation_steps == 12


@pytest.fixture
def teacher(data: tuple[Any, Any], tmp_path: Path) -> Path:
    model = build_model(ModelConfig(config=TINY | {"decoder_hidden_size": 24}), data[1], seed=7)
    save_model(tmp_path / "best", model, processor_from_transforms(TRANSFORMS))
    return tmp_path / "best"


@pytest.mark.usefixtures("in_this_process")
def test_a_teacher_answers_in_every_trial_and_takes_its_memory(
    data: tuple[Any, Any], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def answer(self: Teacher, pixel_values: torch.Tensor) -> torch.Tensor:
        asked.append(len(pixel_values))
        if len(pixel_values) > 2:
            raise RuntimeError(NO_MEMORY)
        return torch.zeros(len(pixel_values), 4, 16, 16)

    distill = {"teacher": str(teacher), "cache": str(tmp_path / "cache")}
    trial = trials(data, distill=distill)
    before = {name: value.clone() for name, value in trial.model.state_dict().items()}
    monkeypatch.setattr(Teacher, "forward", answer)
    trial.seconds(2, accumulation_steps=3, steps=2)
    assert asked == [2] * 6
    assert all(torch.equal(before[name], value) for name, value in trial.model.state_dict().items())
    assert trial.fits(2) and not trial.fits(3)
    config = found(data, distill=distill)
    assert (config.batch_size, config.accumulation_steps) == (2, 4)
    assert config.distill is not None and config.distill.cache == distill["cache"]
    assert not (tmp_path / "cache").exists()  # what lies there would be read in the place of an answer


def test_unlabelled_pictures_are_refused(data: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match=r"training\.batch_size=auto does not know what training\.semi takes"):
        found(data, semi={}, ema_decay=0.9)


@pytest.mark.usefixtures("in_this_process")
def test_processes_agree_and_the_rate_follows_the_images(
    data: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three processes cannot divide 16 images: each takes 6, the second one has room for 2 at a time."""
    accelerator = make_accelerator("cpu")
    monkeypatch.setattr(type(accelerator), "num_processes", 3)
    monkeypatch.setattr(auto_batch, "make_accelerator", lambda *_: accelerator)
    monkeypatch.setattr(auto_batch, "gather_object", lambda own: [*own, 2, 3])
    monkeypatch.setattr(TrialSteps, "seconds", refuse_above(6))
    config = found(data, effective_batch_size=16, learning_rate=6e-5)
    assert (config.micro_batch, config.accumulation_steps) == (2, 3)
    assert config.learning_rate == pytest.approx(6e-5 * math.sqrt(18 / 16), rel=1e-5)
    assert "3 processes cannot divide 16 images evenly: a step takes 18" in caplog.text


@pytest.mark.usefixtures("in_this_process")
def test_not_even_one_image(data: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrialSteps, "seconds", refuse_above(0))
    with pytest.raises(UsageError, match=r"not even one image of 64x64 fits into the memory of cpu: make transforms"):
        found(data)


@pytest.mark.usefixtures("in_this_process")
def test_other_errors_are_not_taken_for_it(data: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(TrialSteps, "seconds", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        found(data)


def test_trials_in_another_process(data: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    trial = trials(data, ema_decay=0.9)
    trial.processes_here = 2
    with caplog.at_level("INFO", "segtune"):
        assert auto_batch.largest_elsewhere(trial, 2) == 2
        assert not caplog.records
        trial.transforms = TRANSFORMS.model_copy(update={"crop_size": 2**17})  # 51 GB for an image
        assert auto_batch.largest_elsewhere(trial, 2) == 0
    assert caplog.messages == ["a micro-batch of 1 does not fit"]


def test_a_fault_of_the_data_comes_out_of_another_process_as_it_is(data: tuple[Any, Any], tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
        Image.effect_noise((64, 64), 50).save(tmp_path / kind / "train" / "a.png")
    image = tmp_path / "images" / "train" / "a.png"
    image.write_bytes(image.read_bytes()[:2000])  # the header is whole
    broken = load_segmentation_dataset(str(tmp_path))["train"]
    with pytest.raises(DataError, match=r"a\.png"):
        auto_batch.largest_elsewhere(trials((broken, data[1])), 2)


@pytest.mark.parametrize(
    ("does", "batch"),
    [
        ("print('fits', 2); import os; os.abort()", 2),
        ("print('fits', 1); print('fits', 4); raise MemoryError", 4),
        ("raise RuntimeError('could not create a primitive')", 0),
        ("print('a library greets'); print('fits', 1)", 1),
    ],
)
def test_a_process_that_memory_ends_tells_what_fitted_before(
    data: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, does: str, batch: int
) -> None:
    monkeypatch.setattr(
        auto_batch, "_TRIALS", f"import functools; print = functools.partial(print, flush=True); {does}"
    )
    assert auto_batch.largest_elsewhere(trials(data), 4) == batch


def test_a_bug_in_another_process_is_told(data: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_batch, "_TRIALS", "print('fits', 1); {}['lost']")
    with pytest.raises(RuntimeError, match=r"(?s)^a trial step failed:\n.*KeyError: 'lost'$"):
        auto_batch.largest_elsewhere(trials(data), 4)


def test_sharded_parameters_are_refused(data: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_batch, "is_sharded", lambda _: True)
    with pytest.raises(UsageError, match=r"training\.batch_size=auto does not go with FSDP"):
        found(data)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_memory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr(auto_batch, "free_memory", lambda: 2**26)
    with (
        auto_batch._no_more_than_there_is(torch.device("cpu"), 1),
        pytest.raises(RuntimeError, match="DefaultCPUAllocator"),
    ):
        torch.empty(2**30, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert torch.empty(2**30, dtype=torch.uint8).numel() == 2**30


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_is_that_of_the_number_that_was_found_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [text for text in SMALL if "batch_size" not in text] + ["training.log_every=1", "training.save_every=1"]
    plain = [*small, "training.batch_size=4", f"training.output_dir={tmp_path / 'plain'}"]
    train(load_recipe("demo", plain))
    auto = [*small, "training.batch_size=auto", "training.effective_batch_size=4"]
    auto += [f"training.output_dir={tmp_path / 'auto'}"]
    train(load_recipe("demo", auto))
    assert losses(tmp_path / "auto") == losses(tmp_path / "plain")
    kept = parse_yaml((tmp_path / "auto" / "recipe.yaml").read_text())["training"]
    assert (kept["batch_size"], kept["accumulation_steps"], kept["effective_batch_size"]) == (4, 1, None)
    # A run that goes on takes the stored number, whatever fits by then.
    monkeypatch.setattr(TrialSteps, "seconds", refuse_above(1))
    assert [path.name for path in (tmp_path / "auto" / "checkpoints").iterdir()] == ["step-000001"]
    train(load_recipe("demo", [*auto, "training.resume=auto"]))
    assert losses(tmp_path / "auto") == losses(tmp_path / "plain")


CHILD = """
import sys
from segtune.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert not left.code, left.code
print("PEAK", open("/proc/self/status").read().split("VmPeak:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is heeded by Linux")
def test_two_limits_give_two_batches_and_one_loss(tmp_path: Path) -> None:
    """The statistics of a local batch norm, and dropout, would depend on the division of a step."""
    fixed = ["transforms.crop_size=640", "training.max_steps=1", "training.log_every=1", "training.device=cpu"]
    fixed += ["training.report=false", "training.batch_norm=frozen", "training.effective_batch_size=16"]
    network = "hidden_sizes: [32, 64, 80, 96], depths: [1, 1, 1, 1], decoder_hidden_size: 64"
    fixed += [f"model.config={{{network}, drop_path_rate: 0.0, classifier_dropout_prob: 0.0}}"]

    def run(name: str, limit: int | None, *words: str) -> int:
        command = [sys.executable, "-c", CHILD, "train", "demo", *fixed, f"training.output_dir={tmp_path / name}"]
        limited = f'ulimit -v {limit}; exec "$@"' if limit else 'exec "$@"'
        kept = os.environ | {"MALLOC_TRIM_THRESHOLD_": str(2**17)}  # of freed memory: as little as under a limit
        limited_command = ["bash", "-c", limited, "bash", *command, *words]
        done = subprocess.run(limited_command, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return int(done.stdout.split("PEAK")[1])  # KiB

    def batch(name: str) -> tuple[int, int]:
        training = parse_yaml((tmp_path / name / "recipe.yaml").read_text())["training"]
        return training["batch_size"], training["accumulation_steps"]

    one = run(
        "one", None, "training.batch_size=1", "training.accumulation_steps=16", "training.effective_batch_size=null"
    )
    sixteen = run("sixteen", None, "training.batch_size=16", "training.effective_batch_size=null")
    spare = auto_batch.HEADROOM // 1024
    assert sixteen - one > spare  # else the limits below would tell nothing
    run("wide", sixteen + 2 * spare, "training.batch_size=auto")
    run("narrow", (one + sixteen) // 2 + spare, "training.batch_size=auto")
    assert batch("wide") == (16, 1)
    small, times = batch("narrow")
    assert small < 16 and small * times == 16
    first = {name: losses(tmp_path / name)[0] for name in ("one", "sixteen", "wide", "narrow")}
    assert list(first.values()) == pytest.approx([first["sixteen"]] * 4, rel=1e-6)
