from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate import Accelerator

from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.loading import load_model
from segtune.training.checkpoint import load_state, save_model, save_state, saved_states
from segtune.training.config import ModelConfig
from segtune.training.model import build_model
from support.networks import TINY

LABELS = LabelMap.from_ids({7: "road", 8: "road", 11: "car", 0: None}, colors={"car": (1, 2, 3)}, ignore_index=-100)


def test_save_and_load_is_exact_and_read_by_transformers(tmp_path: Path) -> None:
    model = build_model(ModelConfig(config=TINY), LABELS).eval()
    for _ in range(2):  # the second one replaces the first
        save_model(tmp_path / "best", model, SegformerImageProcessor(do_resize=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]
    pixel_values = torch.randn(1, 3, 64, 64)
    again = load_model(tmp_path / "best").eval()
    theirs = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "best").eval()
    with torch.no_grad():
        logits = model(pixel_values).logits
        assert torch.equal(again(pixel_values).logits, logits)
        torch.testing.assert_close(theirs(pixel_values).logits, logits, rtol=1e-4, atol=1e-6)
    assert LabelMap.from_config(again.config) == LABELS
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "best").do_resize is False


def test_states_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (1_000_000, 20, 999_999):
        (tmp_path / f"step-{step:06d}").mkdir()
    assert [path.name for path in saved_states(tmp_path)] == ["step-000020", "step-999999", "step-1000000"]


# --- training states --------------------------------------------------------------------------------------------------


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_a_resumed_process_takes_the_same_step_to_the_last_bit(accelerator: Accelerator, tmp_path: Path) -> None:
    """Weights, AdamW's moments and step count, and the random numbers of dropout are those of before."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))

    def next_step(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        optimizer.zero_grad()
        model(torch.ones(8, 3)).square().sum().backward()
        optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    next_step(optimizer)
    save_state(tmp_path / "state", accelerator, model, optimizer, {"step": 1, "note": [1, 2]})
    expected = next_step(optimizer)
    torch.manual_seed(7)
    fresh = torch.optim.AdamW(model.parameters(), lr=0.3)
    assert load_state(tmp_path / "state", accelerator, model, fresh) == {"step": 1, "note": [1, 2]}
    assert all(torch.equal(*pair) for pair in zip(next_step(fresh), expected, strict=True))


def test_the_loss_scale_goes_on(accelerator: Accelerator, tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    save_state(tmp_path / "1", accelerator, model, optimizer, {})  # without a scaler
    accelerator.scaler = SimpleNamespace(state_dict=lambda: {"scale": 8.0}, load_state_dict=(loaded := []).append)
    save_state(tmp_path / "2", accelerator, model, optimizer, {})
    load_state(tmp_path / "1", accelerator, model, optimizer)
    assert loaded == []
    load_state(tmp_path / "2", accelerator, model, optimizer)
    assert loaded == [{"scale": 8.0}]
    accelerator.scaler = None  # a run may go on in another precision
    load_state(tmp_path / "2", accelerator, model, optimizer)


def test_the_generator_of_a_gpu_goes_on(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of this process's GPU; a run on the CPU wakes none up."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", asked.append)
    save_state(tmp_path / "cpu", accelerator, model, optimizer, {})
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    load_state(tmp_path / "cpu", accelerator, model, optimizer)  # may go on elsewhere
    assert asked == []
    save_state(tmp_path / "gpu", accelerator, model, optimizer, {})
    load_state(tmp_path / "gpu", accelerator, model, optimizer)
    assert [state.tolist() for state in asked] == [[7]]
    monkeypatch.undo()
    load_state(tmp_path / "gpu", accelerator, model, optimizer)


def test_a_state_that_would_run_code_is_refused(accelerator: Accelerator, tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    save_state(tmp_path / "1", accelerator, model, optimizer, {"hook": SimpleNamespace()})
    with pytest.raises(pickle.UnpicklingError, match="SimpleNamespace"):
        load_state(tmp_path / "1", accelerator, model, optimizer)
