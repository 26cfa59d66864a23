from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from segtune.errors import DataError, UsageError
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training.config import LoraConfig
from segtune.training.ema import ExponentialMovingAverage
from segtune.training.lora import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    add_lora,
    load_adapter,
    merged,
    save_adapter,
)
from segtune.training.optim import adamw, parameter_groups
from support import networks

TINY = {**networks.TINY, "num_labels": 5}
IMAGE = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
IN_A_FRESH_PROCESS = """
import sys
from pathlib import Path
import torch
from segtune.training.lora import load_adapter
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

base, adapter, image, target = map(Path, sys.argv[1:])
model = load_adapter(SegformerForSemanticSegmentation.from_pretrained(base), adapter)
with torch.no_grad():
    torch.save(model(torch.load(image)).logits, target)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt") / "base"
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(**TINY)).save_pretrained(folder)
    return folder


def trained(base: Path, config: LoraConfig | None = None) -> SegformerForSemanticSegmentation:
    """A model after three steps, with running statistics and updates that matter."""
    torch.manual_seed(1)
    model = SegformerForSemanticSegmentation.from_pretrained(base)
    add_lora(model, config or LoraConfig(rank=4), base=str(base)).train()
    optimizer = adamw(parameter_groups(model, 0.05, 0.0, 1.0), (0.9, 0.999))
    for _ in range(3):
        size = IMAGE.shape[2:]
        model(IMAGE, labels=torch.randint(0, model.config.num_labels, (len(IMAGE), *size))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IMAGE).logits


def trainable(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# --- LoRA ------------------------------------------------------------------------------------------------------------


def test_adapters_and_head_train_and_the_start_is_the_base(base: Path) -> None:
    model = SegformerForSemanticSegmentation.from_pretrained(base)
    before = logits(model)
    assert add_lora(model, LoraConfig()) is model
    torch.testing.assert_close(logits(model), before)
    head = {name for name in trainable(model) if name.startswith("decode_head.")}
    assert head == {f"decode_head.{name}" for name, _ in model.decode_head.named_parameters()}
    adapters = set(trainable(model)) - head
    layers = {name.partition(".lora_")[0].removeprefix("segformer.encoder.block.") for name in adapters}
    parts = ("self.query", "self.key", "self.value", "output.dense")
    assert layers == {f"{stage}.0.attention.{part}" for stage in range(4) for part in parts}
    assert len(adapters) == 2 * len(layers)
    scaling = {layer.scaling["default"] for layer in model.modules() if hasattr(layer, "scaling")}
    assert scaling == {2.0}


def test_three_steps_change_what_trains_and_nothing_else(base: Path) -> None:
    model, start = trained(base), load_file(base / "model.safetensors")
    now = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    changed = {name for name in start if not torch.equal(start[name], now[name])}
    assert changed == {name for name in start if name.startswith("decode_head.")}
    updates = [value.abs().max() for name, value in now.items() if "lora_B" in name]
    assert len(updates) == 16 and min(updates) > 0


def test_b2_at_rank_8(tmp_path: Path) -> None:
    """At most 5 % of the parameters train besides the head, and only these are stored."""
    model = SegformerForSemanticSegmentation(SegformerConfig.from_variant("b2", num_labels=19))
    add_lora(model, LoraConfig(rank=8))
    total = sum(parameter.numel() for parameter in model.parameters())
    adapters = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "decode_head" not in name)
    assert 0 < adapters <= 0.05 * total
    assert adapters == 2 * 8 * 4 * (3 * 64 + 4 * 128 + 6 * 320 + 3 * 512)  # A and B of 4 projections in each block
    save_adapter(model, tmp_path)
    head = sum(value.nbytes for value in model.decode_head.state_dict().values())
    assert head + 4 * adapters < (tmp_path / ADAPTER_FILE).stat().st_size < head + 4 * adapters + 50_000


@pytest.mark.slow
def test_same_outputs_in_a_fresh_process(base: Path, tmp_path: Path) -> None:
    model, adapter = trained(base), tmp_path / "adapter"
    save_adapter(model, adapter)
    torch.save(IMAGE, tmp_path / "image.pt")
    paths = [str(path) for path in (base, adapter, tmp_path / "image.pt", tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, *paths], check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_loaded_adapter_trains_on(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    save_adapter(model, tmp_path)
    loaded = load_adapter(SegformerForSemanticSegmentation.from_pretrained(base), tmp_path)
    assert trainable(loaded) == trainable(model)
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    save_adapter(loaded, tmp_path / "again")
    for file in (ADAPTER_FILE, ADAPTER_CONFIG_FILE, "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_loaded_adapter_is_in_the_mode_of_its_model(base: Path, tmp_path: Path) -> None:
    model = trained(base, LoraConfig(rank=4, dropout=0.5))
    save_adapter(model, tmp_path)
    loaded = load_adapter(SegformerForSemanticSegmentation.from_pretrained(base), tmp_path)
    assert not any(module.training for module in loaded.modules())
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_itself_reads_the_adapter(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(SegformerForSemanticSegmentation.from_pretrained(base), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model))
    assert json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())["base_model_name_or_path"] == str(base)
    assert SegformerConfig.from_pretrained(tmp_path).num_labels == 5


def test_merged_model_is_a_plain_one_that_transformers_loads(base: Path, tmp_path: Path) -> None:
    model = trained(base).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    plain = merged(model)
    assert model.training and not plain.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert plain.state_dict().keys() == load_file(base / "model.safetensors").keys()
    assert not hasattr(plain, "peft_config") and all(p.requires_grad for p in plain.parameters())
    torch.testing.assert_close(logits(plain), logits(model.eval()), rtol=1e-5, atol=1e-5)

    plain.save_pretrained(tmp_path)
    theirs, info = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(theirs.eval()), logits(model), rtol=1e-4, atol=1e-5)
    start = logits(SegformerForSemanticSegmentation.from_pretrained(base))
    assert (logits(plain) - start).abs().max() > 0.01


def test_averaged_weights_are_merged(base: Path) -> None:
    model = trained(base)
    ema = ExponentialMovingAverage(model, decay=0.5)
    assert ema.averages.keys() >= set(trainable(model)) and not any("base_layer" in name for name in ema.averages)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    with ema.swapped_in(model):
        averaged = logits(merged(model))
        torch.testing.assert_close(averaged, logits(model), rtol=1e-5, atol=1e-5)
    assert (averaged - logits(model)).abs().max() > 0.01


def test_other_modules_train_and_are_stored(base: Path, tmp_path: Path) -> None:
    path = "segformer.encoder.patch_embeddings.0.proj"
    model = trained(base, LoraConfig(rank=2, alpha=3.0, targets=("mlp.dense1",), also_train=(path,)))
    assert not torch.equal(model.get_submodule(path).weight, load_file(base / "model.safetensors")[f"{path}.weight"])
    save_adapter(model, tmp_path)
    loaded = load_adapter(SegformerForSemanticSegmentation.from_pretrained(base), tmp_path)
    assert trainable(loaded) == trainable(model)
    torch.testing.assert_close(logits(loaded), logits(model))
    scaling = {layer.scaling["default"] for layer in loaded.modules() if hasattr(layer, "scaling")}
    assert scaling == {1.5}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(targets=("attention.self.qery",)), "lora.targets names attention.self.qery, but no linear layer"),
        (LoraConfig(also_train=("encoder.layer_norm",)), "lora.also_train names encoder.layer_norm, which the model"),
        (LoraConfig(targets=("proj",)), "lora.targets names proj, which is part of decode_head, which trains in full"),
    ],
)
def test_names_that_mean_nothing_are_refused(base: Path, config: LoraConfig, message: str) -> None:
    model = SegformerForSemanticSegmentation.from_pretrained(base)
    with pytest.raises(UsageError, match=message):
        add_lora(model, config)
    assert not hasattr(model, "peft_config")


def test_second_adapter_is_refused(base: Path) -> None:
    model = add_lora(SegformerForSemanticSegmentation.from_pretrained(base), LoraConfig())
    with pytest.raises(UsageError, match="has a LoRA adapter already"):
        add_lora(model, LoraConfig())


def test_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    def plain(**fields: object) -> SegformerForSemanticSegmentation:
        return SegformerForSemanticSegmentation(SegformerConfig(**TINY | fields))

    with pytest.raises(DataError, match=r"holds no adapter: adapter_config\.json is missing"):
        load_adapter(plain(), tmp_path)
    save_adapter(trained(base), tmp_path)
    with pytest.raises(DataError, match=r"cannot be loaded: .*size mismatch"):
        load_adapter(plain(num_labels=6), tmp_path)
    with pytest.raises(DataError, match=r"does not fit the model: 8 tensors differ, segformer.encoder.block.2.1"):
        load_adapter(plain(depths=(1, 1, 2, 1)), tmp_path)
    file, tensors = tmp_path / ADAPTER_FILE, load_file(tmp_path / ADAPTER_FILE)
    for name in ("decode_head.classifier.weight", "decode_head.batch_norm.running_var"):
        save_file({key: value for key, value in tensors.items() if not key.endswith(name)}, file)
        with pytest.raises(DataError, match=f"1 tensors differ, {name}"):
            load_adapter(plain(), tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be loaded: "):
        load_adapter(plain(), tmp_path)


def test_without_peft_the_extra_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'segtune\[lora\]'"):
        add_lora(SegformerForSemanticSegmentation.from_pretrained(base), LoraConfig())
