"""Our SegFormer against transformers' on random weights: features, logits, loss, gradients, files, training steps."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.segformer import modeling_segformer as ours_module
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

SHAPES = {
    "b0": {"hidden_sizes": (32, 64, 160, 256), "depths": (2, 2, 2, 2), "decoder_hidden_size": 256},
    "b2": {"hidden_sizes": (64, 128, 320, 512), "depths": (3, 4, 6, 3), "decoder_hidden_size": 768},
    "widths": {
        "hidden_sizes": (12, 24, 40, 48),
        "depths": (1, 2, 1, 2),
        "num_attention_heads": (1, 3, 4, 6),
        "sr_ratios": (4, 2, 1, 1),
        "mlp_ratios": (2, 3, 4, 2),
        "decoder_hidden_size": 36,
        "num_channels": 5,
    },
}
SIZES = [(64, 64), (65, 97), (224, 160)]
GRADIENT_CASES = [(shape, size) for shape in SHAPES for size in SIZES if shape != "b2"]
GRADIENT_CASES += [("b2", (33, 65)), *(pytest.param("b2", size, marks=pytest.mark.slow) for size in SIZES)]
TOLERANCE = 2e-5  # of the largest value


def config_of(shape: str, **fields: object) -> SegformerConfig:
    no_dropout = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
    return SegformerConfig(num_labels=19, **{**SHAPES[shape], **no_dropout, **fields})


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Weights at the scale of trained ones, biases, norms and batch-norm statistics all away from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
            elif name.endswith("num_batches_tracked"):
                continue
            elif tensor.ndim > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(0.2 * noise)


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module]:
    """The same random weights in our class and in transformers', exchanged through files."""
    ours = SegformerForSemanticSegmentation(config_of(request.param))
    randomize(ours)
    folder = tmp_path_factory.mktemp(request.param)
    ours.save_pretrained(folder)
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    return ours.eval(), theirs.eval()


def published_names(model: nn.Module, tmp_path: Path) -> dict[str, Tensor]:
    """Gradients of a transformers model under the names that its files carry."""
    values = {name: p.grad for name, p in model.named_parameters()}
    clone = type(model)(model.config).to(next(model.parameters()).dtype)
    with torch.no_grad():
        for name, p in clone.named_parameters():
            p.copy_(values[name])
    clone.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_close(ours: Tensor, theirs: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    scale = theirs.abs().max().item()
    difference = (ours - theirs).abs().max().item()
    assert difference <= tolerance * max(scale, 1e-12), f"{what}: {difference:.3g} of {scale:.3g}"


@pytest.mark.parametrize("size", SIZES)
def test_hidden_states_and_logits_agree(pair: tuple[nn.Module, nn.Module], size: tuple[int, int]) -> None:
    ours, theirs = pair
    pixel_values = torch.randn(2, ours.config.num_channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a = ours(pixel_values, output_hidden_states=True)
        b = theirs(pixel_values, output_hidden_states=True)
    assert len(a.hidden_states) == len(b.hidden_states) == 4
    for stage, (x, y) in enumerate(zip(a.hidden_states, b.hidden_states, strict=True)):
        assert_close(x, y, f"stage {stage}")
    assert a.logits.shape == b.logits.shape
    assert_close(a.logits, b.logits, "logits")


@pytest.mark.parametrize(("pair", "size"), GRADIENT_CASES, indirect=["pair"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_loss_and_every_gradient_agree(
    pair: tuple[nn.Module, nn.Module], size: tuple[int, int], mode: str, tmp_path: Path
) -> None:
    """In train mode in double precision: batch statistics of small maps amplify rounding, and a ReLU whose input is
    rounded to the other side of zero moves a whole term, so that float32 says little about either side there. In eval
    mode such a ReLU is rare, a matter of chance, and of this input alone: another one decides."""
    dtype, tolerance = (torch.float64, 1e-6) if mode == "train" else (torch.float32, TOLERANCE)
    ours, theirs = (copy.deepcopy(model).to(dtype).train(mode == "train") for model in pair)
    found = gradient_differences(ours, theirs, size, 2, tolerance, tmp_path)
    if found and mode == "eval":
        assert max(found.values()) < 100 * tolerance, found
        found = gradient_differences(ours, theirs, size, 3, tolerance, tmp_path)
    assert not found


def gradient_differences(
    ours: nn.Module, theirs: nn.Module, size: tuple[int, int], seed: int, tolerance: float, folder: Path
) -> dict[str, float]:
    """The parameters whose gradients differ by more than the tolerance, relative to their scale; the losses agree."""
    generator, dtype = torch.Generator().manual_seed(seed), next(ours.parameters()).dtype
    pixel_values = torch.randn(2, ours.config.num_channels, *size, generator=generator, dtype=dtype)
    labels = torch.randint(0, 19, (2, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    losses = []
    for model in (ours, theirs):
        model.zero_grad(set_to_none=True)
        if dtype == torch.float32:
            loss = model(pixel_values, labels=labels).loss
        else:  # our loss computes in float32
            logits = F.interpolate(model(pixel_values).logits, size=size, mode="bilinear", align_corners=False)
            loss = F.cross_entropy(logits, labels, ignore_index=255)
        loss.backward()
        losses.append(loss.detach())
    assert_close(losses[0], losses[1], "loss", tolerance)
    expected = published_names(theirs, folder)
    parameters = dict(ours.named_parameters())
    assert set(parameters) == {name for name in expected if "running" not in name and "num_batches" not in name}
    largest, found = max(expected[name].abs().max().item() for name in parameters), {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        difference = (parameter.grad - expected[name]).abs().max().item()
        # A softmax does not see the keys' bias, nor a batch norm its input's: zero in exact arithmetic, so that only
        # rounding is left and the scale is that of the network.
        shift = name.startswith(("decode_head.linear_c", "segformer.encoder.layer_norm")) and name.endswith("bias")
        vanishes = name.endswith("key.bias") or (ours.training and shift)
        scale = largest if vanishes else max(expected[name].abs().max().item(), 1e-3 * largest)
        if not difference <= tolerance * scale:
            found[name] = difference / scale
    return found


def test_attention_weights_agree(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    ours, theirs = pair
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(
        _saved(ours, tmp_path), attn_implementation="eager"
    ).eval()
    pixel_values = torch.randn(1, ours.config.num_channels, 65, 97)
    with torch.no_grad():
        a = ours(pixel_values, output_attentions=True)
        b = theirs(pixel_values, output_attentions=True)
    assert len(a.attentions) == len(b.attentions) == sum(ours.config.depths)
    for x, y in zip(a.attentions, b.attentions, strict=True):
        assert_close(x, y, "attention")
    assert_close(a.logits, b.logits, "logits")


def test_eager_attention_equals_sdpa(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    ours, _ = pair
    eager = SegformerForSemanticSegmentation.from_pretrained(_saved(ours, tmp_path), attn_implementation="eager").eval()
    pixel_values = torch.randn(1, ours.config.num_channels, 96, 64)
    assert eager.config._attn_implementation == "eager" and ours.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert_close(eager(pixel_values).logits, ours(pixel_values).logits, "logits")


def _saved(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_files_are_exchanged_both_ways_with_no_key_left_over(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    ours, theirs = pair
    for source, target_class, folder in (
        (ours, transformers.SegformerForSemanticSegmentation, tmp_path / "ours"),
        (theirs, SegformerForSemanticSegmentation, tmp_path / "theirs"),
    ):
        target, info = target_class.from_pretrained(_saved(source, folder), output_loading_info=True)
        assert not any(info.values()), info
        pixel_values = torch.randn(1, ours.config.num_channels, 70, 50)
        with torch.no_grad():
            assert_close(target.eval()(pixel_values).logits, source(pixel_values).logits, "logits")
    ours_config, theirs_config = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("ours", "theirs"))
    assert ours_config["model_type"] == theirs_config["model_type"] == "segformer"
    assert ours_config["architectures"] == theirs_config["architectures"] == ["SegformerForSemanticSegmentation"]


def test_auto_class_reads_our_files(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    ours, _ = pair
    auto = transformers.AutoModelForSemanticSegmentation.from_pretrained(_saved(ours, tmp_path)).eval()
    assert type(auto) is transformers.SegformerForSemanticSegmentation
    pixel_values = torch.randn(1, ours.config.num_channels, 33, 64)
    with torch.no_grad():
        assert_close(ours(pixel_values).logits, auto(pixel_values).logits, "logits")


def test_b0_file_has_the_208_published_names(tmp_path: Path) -> None:
    SegformerForSemanticSegmentation(SegformerConfig.from_variant("b0", num_labels=150)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert len(names) == 208
    assert {
        "segformer.encoder.patch_embeddings.3.proj.weight",
        "segformer.encoder.block.0.0.attention.self.query.weight",
        "segformer.encoder.block.2.1.attention.self.sr.bias",
        "segformer.encoder.block.0.1.attention.self.layer_norm.weight",
        "segformer.encoder.block.3.1.attention.output.dense.bias",
        "segformer.encoder.block.1.0.mlp.dwconv.dwconv.weight",
        "segformer.encoder.layer_norm.2.bias",
        "decode_head.linear_c.3.proj.weight",
        "decode_head.linear_fuse.weight",
        "decode_head.batch_norm.running_var",
        "decode_head.classifier.bias",
    } <= names


@pytest.mark.parametrize(
    ("variant", "millions", "encoder_millions"),
    [
        ("b0", 3.753, 3.319),
        ("b1", 13.716, 13.151),
        ("b2", 27.462, 24.196),
        ("b3", 47.338, 44.072),
        ("b4", 64.108, 60.843),
        ("b5", 84.709, 81.443),
    ],
)
def test_parameter_counts_are_the_published_ones(variant: str, millions: float, encoder_millions: float) -> None:
    with torch.device("meta"):
        model = SegformerForSemanticSegmentation(SegformerConfig.from_variant(variant, num_labels=150))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert sum(p.numel() for p in model.segformer.parameters()) / 1e6 == pytest.approx(encoder_millions, abs=5e-4)


@pytest.mark.parametrize(("variant", "limit"), [("b0", 4.2), ("b1", 11.8), ("b2", 24.5), ("b5", 74.0)])
def test_multiply_accumulates_stay_below_the_limit(variant: str, limit: float) -> None:
    from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

    with torch.device("meta"):
        model = SegformerForSemanticSegmentation(SegformerConfig.from_variant(variant, num_labels=150)).eval()
    # without its hooks on all modules, at which every module is called and the count is that of the paper's network
    counter = FlopCounterMode(display=False)
    with _FlopCounterMode(counter):
        model(torch.empty(1, 3, 512, 512, device="meta"))
    assert 0.5 * limit < counter.get_total_flops() / 2e9 <= limit


def test_classifier_agrees_and_its_encoder_loads(tmp_path: Path) -> None:
    theirs = transformers.SegformerForImageClassification(
        transformers.SegformerConfig(num_labels=10, depths=[1, 1, 1, 1])
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours, info = SegformerForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    pixel_values, labels = torch.randn(2, 3, 64, 96), torch.tensor([3, 9])
    with torch.no_grad():
        a, b = ours.eval()(pixel_values, labels=labels), theirs(pixel_values, labels=labels)
        encoder = SegformerModel.from_pretrained(tmp_path).eval()(pixel_values).last_hidden_state
        assert_close(encoder, theirs.segformer(pixel_values).last_hidden_state, "encoder")
    assert_close(a.logits, b.logits, "logits")
    assert_close(a.loss, b.loss, "loss")


def test_three_sgd_steps_give_the_same_parameters(tmp_path: Path) -> None:
    ours = SegformerForSemanticSegmentation(config_of("b0", depths=(1, 1, 1, 1)))
    randomize(ours)
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(_saved(ours, tmp_path / "start"))
    generator = torch.Generator().manual_seed(3)
    batches = [
        (torch.randn(2, 3, 64, 96, generator=generator), torch.randint(0, 19, (2, 64, 96), generator=generator))
        for _ in range(3)
    ]
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
        for pixel_values, labels in batches:
            optimizer.zero_grad()
            model(pixel_values, labels=labels).loss.backward()
            optimizer.step()
    back = SegformerForSemanticSegmentation.from_pretrained(_saved(theirs, tmp_path / "end"))
    start = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "start").state_dict()
    moved = 0
    for name, value in ours.state_dict().items():
        if value.is_floating_point():
            assert_close(value, back.state_dict()[name], name, 1e-5)
            moved += not torch.equal(value, start[name])
    assert moved > 0.9 * len(start)


def test_the_modelling_file_depends_on_nothing_else_of_ours() -> None:
    source = Path(ours_module.__file__).read_text()
    assert "from segtune" not in source and "import segtune" not in source
