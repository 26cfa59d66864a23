from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from segtune.errors import DataError, UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.training import run_folder
from segtune.training.checkpoint import load_state, save_model
from segtune.training.model import ModelConfig, build_model
from segtune.training.run_folder import (
    METRICS_FILE,
    NON_FINITE,
    RECIPE_FILE,
    REPORT_FILE,
    SPLIT_FILE,
    RunFolder,
    find_checkpoint,
    run_content,
)
from support.networks import TINY

LABELS = LabelMap.from_ids({0: "road", 1: "car"})


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def folder(path: Path, accelerator: Accelerator, **settings: Any) -> RunFolder:
    return RunFolder(path, accelerator, **{"resume": "never", "overwrite": False, "keep_last": 2} | settings)


def save_states(run: RunFolder, steps: int) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(1, steps + 1):
        run.save_state(step, model, optimizer, {"step": step, "best": {}})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_fresh_folder(accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, resume in (("a", "never"), ("b", "auto")):
        run = folder(tmp_path / name, accelerator, resume=resume)
        assert run.open("# a recipe\n", None) is None
        run.begin(0, {"torch": "1"})
        assert run_content(tmp_path / name) == ["recipe.yaml", "metrics.jsonl"]
        assert lines(tmp_path / name) == [{"step": 0, "environment": {"torch": "1"}}]
    assert caplog.text == ""


def test_only_the_last_states_stay(accelerator: Accelerator, tmp_path: Path) -> None:
    run = folder(tmp_path, accelerator, keep_last=2)
    save_states(run, 4)
    assert sorted(path.name for path in run.states.iterdir()) == ["step-000003", "step-000004"]


def test_what_a_kill_kept_from_being_removed_goes_when_the_run_goes_on(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    save_states(folder(tmp_path, accelerator, keep_last=4), 4)
    oldest = tmp_path / "checkpoints" / "step-000001"
    for resume, kept in ((str(oldest), [1, 3, 4]), ("auto", [3, 4])):
        assert folder(tmp_path, accelerator, resume=resume).open(None, None) is not None
        assert sorted(path.name for path in oldest.parent.iterdir()) == [f"step-00000{step}" for step in kept]


def test_a_torn_training_state_is_named_and_the_one_before_is_taken(
    accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file cut at every tenth of its length, one after another."""
    run = folder(tmp_path / "run", accelerator, resume="auto")
    save_states(run, 3)
    whole = tmp_path / "whole"
    shutil.copytree(run.states / "step-000003", whole)
    files = sorted(whole.iterdir())
    assert [file.name for file in files] == ["manifest.json", "model.safetensors", "training_state.pt"]
    for file in files:
        for tenth in range(10):
            shutil.rmtree(run.states / "step-000003", ignore_errors=True)
            shutil.copytree(whole, run.states / "step-000003")
            content = file.read_bytes()
            (run.states / "step-000003" / file.name).write_bytes(content[: len(content) * tenth // 10])
            caplog.clear()
            assert run.newest_state() == run.states / "step-000002"
            assert file.name in caplog.text and "the one before is taken" in caplog.text
            assert not (run.states / "step-000003").exists()
    shutil.rmtree(run.states)
    caplog.clear()
    run.open(None, None)
    assert caplog.text == ""  # nothing there that could be missed


def test_a_damaged_state_that_was_named_is_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    save_states(folder(tmp_path, accelerator), 1)
    state = tmp_path / "checkpoints" / "step-000001"
    damaged = bytearray((state / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (state / "model.safetensors").write_bytes(damaged)
    model = torch.nn.Linear(3, 2)
    with pytest.raises(DataError, match=r"model.safetensors is not what was written: its checksum differs"):
        load_state(state, accelerator, model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(UsageError, match="nowhere is not a folder: give auto, never or a saved state"):
        folder(tmp_path, accelerator, resume=str(tmp_path / "nowhere")).open(None, None)


def test_a_state_of_another_run_starts_a_new_one(accelerator: Accelerator, tmp_path: Path) -> None:
    save_states(folder(tmp_path / "old", accelerator), 1)
    state = tmp_path / "old" / "checkpoints" / "step-000001"
    own = folder(tmp_path / "old", accelerator, resume=str(state))
    assert own.is_resuming and own.open(None, None) == state
    new = folder(tmp_path / "new", accelerator, resume=str(state))
    assert not new.is_resuming and new.open("# a recipe\n", None) == state
    new.begin(1, {})
    with pytest.raises(UsageError, match=r"new holds a run \(recipe.yaml, metrics.jsonl\)"):
        folder(tmp_path / "new", accelerator, resume=str(state)).open(None, None)
    assert folder(tmp_path / "new", accelerator, resume=str(state), overwrite=True).open(None, None) == state
    assert run_content(tmp_path / "new") == []


def test_a_state_holds_the_recipe_of_its_run(accelerator: Accelerator, tmp_path: Path) -> None:
    run = folder(tmp_path, accelerator)
    run.open("# a recipe\n", None)
    save_states(run, 1)
    assert (run.states / "step-000001" / "recipe.yaml").read_text() == "# a recipe\n"


def test_other_samples_than_before_are_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    splits = {"train": Dataset.from_dict({"id": ["a", "b"]})}
    folder(tmp_path, accelerator).open(None, splits)
    folder(tmp_path, accelerator, resume="auto").open(None, splits)
    with pytest.raises(UsageError, match=r"the data is not what the run began with: .*split.json lists other samples"):
        folder(tmp_path, accelerator, resume="auto").open(None, {"train": Dataset.from_dict({"id": ["a", "b", "c"]})})
    assert json.loads((tmp_path / "split.json").read_text()) == {"train": ["a", "b"]}
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_ended_before_its_first_state_starts_anew(
    accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lines would otherwise stand twice in metrics.jsonl."""
    run = folder(tmp_path, accelerator)
    run.open("# a recipe\n", None)
    run.begin(0, {"torch": "1"})
    run.write({"step": 1, "loss": 0.5})
    again = folder(tmp_path, accelerator, resume="auto")
    assert again.open("# a recipe\n", None) is None
    again.begin(0, {"torch": "1"})
    assert "holds no training state to go on from: starting from the first step" in caplog.text
    assert lines(tmp_path) == [{"step": 0, "environment": {"torch": "1"}}]


def test_metrics_go_on_after_the_state(accelerator: Accelerator, tmp_path: Path) -> None:
    run = folder(tmp_path, accelerator)
    run.open(None, None)
    run.begin(0, {"num_processes": 1})
    for step in range(1, 5):
        run.write({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # the process was killed here
    run.begin(2, {"num_processes": 1})
    before = [{"step": 0, "environment": {"num_processes": 1}}, {"step": 1}, {"step": 2}]
    assert lines(tmp_path) == before
    run.begin(2, {"num_processes": 2})
    assert lines(tmp_path) == [*before, {"step": 2, "environment": {"num_processes": 2}}]


def test_lines_that_are_gone_are_told(
    accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = folder(tmp_path, accelerator, resume="auto")
    run.open(None, None)
    run.begin(0, {})
    for step in range(1, 5):
        run.write({"step": step})
    assert run.lines == 5
    run.begin(4, {}, written=5)
    assert caplog.text == ""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    run.begin(4, {}, written=5)
    assert "metrics.jsonl: 4 of 5 lines from before step 4 are gone" in caplog.text
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl is not a file: move it away"):
        run.begin(4, {})


def test_the_best_weights_of_a_run_are_found_else_the_last_else_those_that_are_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("best", "final"):
        (run / name).mkdir(parents=True)
        for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (run / name / file).touch()
    with pytest.raises(UsageError, match=r"is no run folder: it has no recipe\.yaml"):
        find_checkpoint(run)
    (run / "recipe.yaml").touch()
    assert find_checkpoint(run) == (run, run / "best")
    assert find_checkpoint(run / "final") == (run, run / "final")
    (run / "best" / "model.safetensors").unlink()  # final/ has other weights
    with pytest.raises(UsageError, match=r"best has no model\.safetensors: let the training go on"):
        find_checkpoint(run)
    shutil.rmtree(run / "best")
    assert find_checkpoint(run) == (run, run / "final")
    shutil.rmtree(run / "final")
    with pytest.raises(UsageError, match="has no weights yet"):
        find_checkpoint(run)
    with pytest.raises(UsageError, match="no such run folder"):
        find_checkpoint(run / "nowhere")


def test_the_environment_is_noted_where_it_changes(accelerator: Accelerator, tmp_path: Path) -> None:
    run = folder(tmp_path, accelerator)
    run.open(None, None)
    for step, processes in enumerate([1, 2, 2, 1]):
        run.begin(step, {"num_processes": processes})
    assert [(line["step"], line["environment"]["num_processes"]) for line in lines(tmp_path)] == [
        (0, 1),
        (1, 2),
        (3, 1),
    ]


def test_the_evaluation_of_best_is_kept(accelerator: Accelerator, tmp_path: Path) -> None:
    evaluation = Evaluation(["road", "car"])
    evaluation.add("a", np.array([[0, 1]]), np.array([[0, 0]]), None)
    folder(tmp_path, accelerator).save_evaluation(evaluation, "val", 7)
    kept = Evaluation.load(tmp_path / "evaluation-val.npz")
    assert kept.about == {"checkpoint": str(tmp_path / "best"), "split": "val", "step": 7}
    assert kept.scores() == evaluation.scores() and kept.counts.ids == ["a"]


def test_what_a_killed_process_was_replacing_comes_back(accelerator: Accelerator, tmp_path: Path) -> None:
    run = folder(tmp_path, accelerator, resume="auto")
    save_states(run, 1)
    (tmp_path / ".best.old").mkdir()  # killed between the two renames
    (tmp_path / "final").mkdir()
    (tmp_path / ".final.tmp").mkdir()
    (run.states / "step-000001").rename(run.states / ".step-000001.old")
    assert run.open(None, None) == run.states / "step-000001"
    assert run_content(tmp_path) == ["checkpoints", "best", "final"]
    assert not list(tmp_path.glob(".*")) and not list(run.states.glob(".*"))


@pytest.mark.parametrize("name", ["final/model.safetensors", "evaluation-val.npz"])
def test_damage_that_the_run_itself_mends_is_told(
    accelerator: Accelerator, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = folder(tmp_path, accelerator, resume="auto")
    save_states(run, 1)
    save_model(tmp_path / "final", build_model(ModelConfig(config=TINY), LABELS), SegformerImageProcessor())
    evaluation = Evaluation(["road", "car"])
    evaluation.add("a", np.array([[0, 1]]), np.array([[0, 0]]), None)
    run.save_evaluation(evaluation, "val", 1)
    run.open(None, None)
    assert caplog.text == ""
    content = bytearray((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    run.open(None, None)
    assert str(tmp_path / name) in caplog.text and "is written anew" in caplog.text


def test_a_model_of_an_earlier_version_has_no_checksums(accelerator: Accelerator, tmp_path: Path) -> None:
    save_model(tmp_path / "best", build_model(ModelConfig(config=TINY), LABELS), SegformerImageProcessor())
    run = folder(tmp_path, accelerator)
    assert run.damage_of_best() is None
    (tmp_path / "best" / ".manifest.json").unlink()
    assert run.damage_of_best() is None
    (tmp_path / "best" / "config.json").unlink()
    assert run.damage_of_best() == f"{tmp_path}/best/config.json is missing"


def test_a_run_is_never_removed_unasked(accelerator: Accelerator, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run = folder(tmp_path, accelerator)
    run.open("# a recipe\n", None)
    run.begin(0, {})
    with pytest.raises(UsageError, match=r"holds a run \(recipe.yaml, metrics.jsonl\)"):
        folder(tmp_path, accelerator).open("# another\n", None)
    assert (tmp_path / "recipe.yaml").read_text() == "# a recipe\n"
    folder(tmp_path, accelerator, overwrite=True).open("# another\n", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def test_a_proposal_goes_with_the_run_that_it_began_and_stays_where_it_begins_another(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    proposal = tmp_path / "proposal.yaml"
    proposal.write_text("model: {}\n")
    folder(tmp_path, accelerator).open(None, None)  # it alone is no run
    assert proposal.is_file()
    for source, stays in ((proposal, True), (tmp_path / "mine.yaml", False)):
        folder(tmp_path, accelerator, resume="auto").begin(0, {})
        run = folder(tmp_path, accelerator, overwrite=True)
        run.source = source
        run.open(None, None)
        assert proposal.is_file() == stays and not (tmp_path / "metrics.jsonl").exists()


def test_the_images_of_a_step_must_be_as_many_as_before(
    accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "checkpoints" / "step-000001"
    run = folder(tmp_path, accelerator, resume="auto")
    run.check_batch_layout(state, (4, 2, 2), (4, 2, 2))
    assert caplog.text == ""
    run.check_batch_layout(state, (4, 2, 2), (4, 4, 1))
    assert (
        "a step took 16 images, 4 x 2 x 2 (batch_size x accumulation_steps x processes), now 16, 4 x 4 x 1"
        in caplog.text
    )
    with pytest.raises(UsageError, match=r"took 16 images, 4 x 2 x 2 .* now 8, 4 x 2 x 1: change training.batch_size"):
        run.check_batch_layout(state, (4, 2, 2), (4, 2, 1))
    folder(tmp_path / "new", accelerator, resume=str(state)).check_batch_layout(state, (4, 2, 2), (4, 2, 1))
    assert "now 8" in caplog.text  # where a new run starts, it is only said


def test_names_of_the_files_of_a_run_are_spelled_in_one_module() -> None:
    names = {RECIPE_FILE, SPLIT_FILE, METRICS_FILE, REPORT_FILE, NON_FINITE}
    package = Path(run_folder.__file__).parents[1]
    spelled = [
        (path.name, node.value)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    homes = {RECIPE_FILE: "config.py"}  # the rest in run_folder.py
    assert sorted(spelled) == sorted((homes.get(name, "run_folder.py"), name) for name in names)
