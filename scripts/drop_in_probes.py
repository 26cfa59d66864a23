"""What people do with a SegFormer, as small functions that run on transformers' classes and on segtune's.

Each takes a `Side` and returns tensors, numbers or shapes, which are to be equal for both; `drop_in_table.py` runs
them.
"""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

PROBES: dict[str, dict[str, Callable[[Side], Any]]] = {}  # a part of the table -> what is done -> how
BOTH = {"do_resize": False}


@dataclass(frozen=True)
class Side:
    """The classes of one library, and a checkpoint that both read."""

    name: str
    folder: str
    config: Any
    encoder: Any
    segmentation: Any
    processor: Any
    other_segmentation: Any  # of the other library

    def model(self, **options: Any) -> Any:
        return self.segmentation.from_pretrained(self.folder, **options).eval()


def probe(part: str, what: str) -> Callable[[Callable[[Side], Any]], Callable[[Side], Any]]:
    """Enter a function into the table."""

    def enter(function: Callable[[Side], Any]) -> Callable[[Side], Any]:
        PROBES.setdefault(part, {})[what] = function
        return function

    return enter


def simple(part: str, probes: dict[str, Callable[[Side], Any]]) -> None:
    """Enter those that fit in one line; the name says what is done."""
    PROBES.setdefault(part, {}).update(probes)


def pixels(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height + batch))


def labels(count: int = 5) -> torch.Tensor:
    ids = torch.randint(0, count, (2, 64, 96), generator=torch.Generator().manual_seed(1))
    ids[:, :3] = 255
    return ids


def again(value: Any) -> Any:
    """Through pickle and back."""
    return pickle.loads(pickle.dumps(value))


def logits(model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(*(args or (pixels(),)), **kwargs).logits.float()


def gradient(model: Any, choose: Callable[[Any], Any]) -> torch.Tensor:
    """Of the loss, with respect to one parameter."""
    model(pixels().to(model.dtype), labels=labels()).loss.backward()
    return choose(model).grad


# --- loading and saving ----------------------------------------------------------------------------------------------

LOADING = "Loading and saving"


@probe(LOADING, "`from_pretrained(path, config=AutoConfig.from_pretrained(path))`")
def _(side: Side) -> Any:
    from transformers import AutoConfig

    return logits(side.model(config=AutoConfig.from_pretrained(side.folder)))


@probe(LOADING, "`from_pretrained` of the encoder alone")
def _(side: Side) -> Any:
    with torch.no_grad():
        return side.encoder.from_pretrained(side.folder).eval()(pixels()).last_hidden_state


@probe(LOADING, "`num_labels=7, ignore_mismatched_sizes=True`")
def _(side: Side) -> Any:
    model = side.model(num_labels=7, ignore_mismatched_sizes=True)
    return [logits(model).shape, len(model.config.id2label), model.decode_head.linear_fuse.weight]


@probe(LOADING, "`id2label=…, label2id=…`")
def _(side: Side) -> Any:
    names = {i: f"class {i}" for i in range(5)}
    model = side.model(id2label=names, label2id={name: i for i, name in names.items()})
    return [list(model.config.id2label.values()), logits(model)]


@probe(LOADING, "`save_pretrained(max_shard_size=…)` and back")
def _(side: Side) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        side.model().save_pretrained(folder, max_shard_size="40KB")
        return logits(side.segmentation.from_pretrained(folder).eval())


@probe(LOADING, "`torch.save(state_dict)`, `load_state_dict`")
def _(side: Side) -> Any:
    file, model = io.BytesIO(), side.model()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = side.segmentation(model.config).eval()
    fresh.load_state_dict(torch.load(file))
    return logits(fresh)


@probe(LOADING, "`load_state_dict(state_dict of the other library's model)`")
def _(side: Side) -> Any:
    model = side.segmentation(side.model().config).eval()
    model.load_state_dict(side.other_segmentation.from_pretrained(side.folder).state_dict())
    return logits(model)


@probe(LOADING, "`device_map='auto'` with offload to disk")
def _(side: Side) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return logits(side.model(device_map="auto", max_memory={"cpu": "60KB"}, offload_folder=folder))


@probe(LOADING, "`accelerate.cpu_offload`")
def _(side: Side) -> Any:
    from accelerate import cpu_offload

    return logits(cpu_offload(side.model(), "cpu"))


simple(
    LOADING,
    {
        "`from_pretrained(path)`": lambda side: logits(side.model()),
        "`dtype=torch.bfloat16`": lambda side: [logits(side.model(dtype=torch.bfloat16), pixels().bfloat16()) * 1.0],
        "`device_map='cpu'`": lambda side: logits(side.model(device_map="cpu")),
        "`output_loading_info=True`": lambda side: sorted(
            len(value) for value in side.segmentation.from_pretrained(side.folder, output_loading_info=True)[1].values()
        ),
        "`Config(**config.to_dict())`": lambda side: side.config(**side.model().config.to_dict()).to_dict(),
        "`copy.deepcopy`": lambda side: logits(copy.deepcopy(side.model())),
        "pickle": lambda side: logits(again(side.model())),
    },
)

# --- calling ---------------------------------------------------------------------------------------------------------

CALLING = "Calling"


@probe(CALLING, "`model.decode_head(model.segformer(x, output_hidden_states=True).hidden_states)`")
def _(side: Side) -> Any:
    model = side.model()
    with torch.no_grad():
        return model.decode_head(model.segformer(pixels(), output_hidden_states=True).hidden_states)


@probe(CALLING, "bfloat16 autocast")
def _(side: Side) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return logits(side.model())


@probe(CALLING, "enlarge the logits, then `argmax` (the notebooks' line)")
def _(side: Side) -> Any:
    return nn.functional.interpolate(logits(side.model()), (64, 96), mode="bilinear", align_corners=False).argmax(1)


@probe(CALLING, "loss of a model with one label")
def _(side: Side) -> Any:
    model = side.model(num_labels=1, ignore_mismatched_sizes=True)
    nn.init.constant_(model.decode_head.classifier.weight, 0.1)
    nn.init.zeros_(model.decode_head.classifier.bias)
    return model(pixels(), labels=labels(2)).loss


simple(
    CALLING,
    {
        "logits of images of an odd size": lambda side: logits(side.model(), pixels(61, 83)),
        "`return_dict=False`": lambda side: side.model()(pixels(), return_dict=False)[0],
        "`output_hidden_states=True`": lambda side: list(
            side.model()(pixels(), output_hidden_states=True).hidden_states
        ),
        "`output_attentions=True`": lambda side: list(
            side.model(attn_implementation="eager")(pixels(), output_attentions=True).attentions
        ),
        "`labels=…`: the loss, 255 ignored": lambda side: side.model()(pixels(), labels=labels()).loss,
        "an argument that does not exist": lambda side: logits(side.model(), pixels(), nothing=1),
        "a channels-last batch": lambda side: logits(
            side.model(), pixels().contiguous(memory_format=torch.channels_last)
        ),
        "float64": lambda side: logits(side.model().double(), pixels().double()),
        "`model.segformer(x).last_hidden_state`": lambda side: side.model().segformer(pixels()).last_hidden_state,
    },
)

# --- watching and changing -------------------------------------------------------------------------------------------

CHANGING = "Watching and changing modules"


@probe(CHANGING, "a forward hook that changes what a module gives")
def _(side: Side) -> Any:
    model = side.model()
    model.decode_head.linear_fuse.register_forward_hook(lambda module, args, output: output * 0.5)
    return logits(model)


@probe(CHANGING, "`module.forward = …`")
def _(side: Side) -> Any:
    model = side.model()
    fuse = model.decode_head.linear_fuse
    original = fuse.forward
    fuse.forward = lambda x: original(x) * 0.5
    return logits(model)


@probe(CHANGING, "the classifier replaced")
def _(side: Side) -> Any:
    model = side.model()
    model.decode_head.classifier = nn.Conv2d(model.config.decoder_hidden_size, 3, 1)
    nn.init.constant_(model.decode_head.classifier.weight, 0.1)
    nn.init.zeros_(model.decode_head.classifier.bias)
    return logits(model)


@probe(CHANGING, "the encoder frozen")
def _(side: Side) -> Any:
    model = side.model()
    model.segformer.requires_grad_(False)
    return gradient(model, lambda m: m.decode_head.linear_fuse.weight)


@probe(CHANGING, "`gradient_checkpointing_enable()`")
def _(side: Side) -> Any:
    model = side.model().double().train()  # batch statistics of few pixels would enlarge what float32 rounds
    model.gradient_checkpointing_enable()
    return gradient(model, lambda m: m.decode_head.linear_fuse.weight)


@probe(CHANGING, "gradients to the image (saliency)")
def _(side: Side) -> Any:
    x = pixels().requires_grad_()
    side.model()(x).logits[:, 1].sum().backward()
    return x.grad


@probe(CHANGING, "gradients to `hidden_states` (Grad-CAM, distillation)")
def _(side: Side) -> Any:
    outputs = side.model()(pixels(), output_hidden_states=True)
    return list(torch.autograd.grad(outputs.logits[:, 1].sum(), outputs.hidden_states))


@probe(CHANGING, "`retain_grad()` on `hidden_states` of the encoder")
def _(side: Side) -> Any:
    outputs = side.encoder.from_pretrained(side.folder).eval()(pixels(), output_hidden_states=True)
    for state in outputs.hidden_states:
        state.retain_grad()
    outputs.last_hidden_state.sum().backward()
    return [state.grad for state in outputs.hidden_states]


@probe(CHANGING, "a full backward hook on the classifier (Grad-CAM)")
def _(side: Side) -> Any:
    model, seen = side.model(), []
    model.decode_head.classifier.register_full_backward_hook(lambda module, given, got: seen.append(got[0]))
    model(pixels()).logits[:, 1].sum().backward()
    return seen


@probe(CHANGING, "`spectral_norm` on the classifier")
def _(side: Side) -> Any:
    model = side.model()
    torch.manual_seed(0)
    nn.utils.parametrizations.spectral_norm(model.decode_head.classifier)
    return logits(model)


@probe(CHANGING, "`SyncBatchNorm.convert_sync_batchnorm`, evaluation")
def _(side: Side) -> Any:
    return logits(nn.SyncBatchNorm.convert_sync_batchnorm(side.model()).eval())


simple(
    CHANGING,
    {
        "gradients of the weights": lambda side: gradient(side.model(), lambda m: m.decode_head.linear_fuse.weight),
        "the gradient differentiated again": lambda side: torch.autograd.grad(
            torch.autograd.grad(side.model()(x := pixels().requires_grad_()).logits.sum(), x, create_graph=True)[0]
            .pow(2)
            .sum(),
            x,
        )[0],
    },
)

# --- wrapping and exporting ------------------------------------------------------------------------------------------

WRAPPING = "Wrapping and exporting"


class LogitsOnly(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x, return_dict=False)[0]


@probe(WRAPPING, "`torch.jit.trace`, run at another size and batch")
def _(side: Side) -> Any:
    with torch.no_grad():
        traced = torch.jit.trace(LogitsOnly(side.model()), pixels(64, 64, 1), check_trace=False)
        return traced(pixels(128, 96, 3))


@probe(WRAPPING, "`torch.export`, run at the same size")
def _(side: Side) -> Any:
    return torch.export.export(LogitsOnly(side.model()), (pixels(),)).module()(pixels())


@probe(WRAPPING, "`torch.func.grad` over the parameters")
def _(side: Side) -> Any:
    model = LogitsOnly(side.model())
    weights = dict(model.named_parameters())
    loss = torch.func.grad(lambda w: torch.func.functional_call(model, w, (pixels(),)).square().mean())
    return loss(weights)["model.decode_head.linear_fuse.weight"]


@probe(WRAPPING, "`torch.vmap` over a batch")
def _(side: Side) -> Any:
    model = LogitsOnly(side.model())
    with torch.no_grad():
        return torch.vmap(lambda x: model(x[None])[0])(pixels())


@probe(WRAPPING, "LoRA of `peft` on query and value")
def _(side: Side) -> Any:
    from peft import LoraConfig, get_peft_model

    names = {name.rpartition(".")[2] for name, _ in side.model().named_modules()}
    targets = ["query", "value"] if "query" in names else ["q_proj", "v_proj"]
    model = get_peft_model(side.model(), LoraConfig(target_modules=targets, modules_to_save=["decode_head"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.01)
        if "lora_A" in name:
            nn.init.constant_(parameter, 0.02)
    return [logits(model), logits(model.merge_and_unload())]


@probe(WRAPPING, "`torch.func.functional_call`")
def _(side: Side) -> Any:
    model = LogitsOnly(side.model())
    weights = {name: weight * 1.01 for name, weight in model.named_parameters()}
    return torch.func.functional_call(model, weights, (pixels(),))


simple(
    WRAPPING,
    {
        "`nn.DataParallel` on a CPU": lambda side: logits(nn.DataParallel(side.model())),
        "`AveragedModel`": lambda side: logits(torch.optim.swa_utils.AveragedModel(side.model())),
    },
)

# --- image processor -------------------------------------------------------------------------------------------------

PROCESSOR = "Image processor"
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
MASK = np.random.default_rng(1).integers(0, 5, (40, 60)).astype(np.uint8)


def prepared(side: Side, *, call: dict[str, Any] | None = None, image: Any = PHOTO, **fields: Any) -> Any:
    batch = side.processor(**fields)(image, MASK.copy() if image is PHOTO else None, **(call or {}))
    return [np.asarray(value) for key in sorted(batch) for value in batch[key]]


def post_processed(side: Side, *, scores: bool = False, gradients: bool = False) -> Any:
    values = torch.randn(2, 5, 16, 24, generator=torch.Generator().manual_seed(0)).requires_grad_(gradients)
    more = {"return_segmentation_scores": True} if scores else {}
    found = side.processor().post_process_semantic_segmentation(
        SimpleNamespace(logits=values), target_sizes=[(40, 60), (33, 21)], **more
    )
    return [value for one in found for value in (one.values() if scores else [one])]


@probe(PROCESSOR, "a subclass with other defaults")
def _(side: Side) -> Any:
    kind = type("Mine", (side.processor,), {"size": {"height": 16, "width": 24}})
    return prepared(SimpleNamespace(processor=kind))  # type: ignore[arg-type]


simple(
    PROCESSOR,
    {
        "image and mask": prepared,
        "`reduce_labels=True`, its old name": lambda side: prepared(side, reduce_labels=True),
        "`do_reduce_labels=True` for one call": lambda side: prepared(side, call={"do_reduce_labels": True}),
        "`use_fast=False`": lambda side: prepared(side, use_fast=False),
        "`data_format='channels_first'`": lambda side: prepared(side, call={"data_format": "channels_first"}),
        "`data_format='channels_last'`": lambda side: prepared(side, call={"data_format": "channels_last"}),
        "`input_data_format='channels_last'`": lambda side: prepared(side, call={"input_data_format": "channels_last"}),
        "`do_center_crop=True, crop_size=20`": lambda side: prepared(side, do_center_crop=True, crop_size=20),
        "`size={'shortest_edge': 30, 'longest_edge': 40}`": lambda side: prepared(
            side, size={"shortest_edge": 30, "longest_edge": 40}
        ),
        "`size={'max_height': 30, 'max_width': 20}`": lambda side: prepared(
            side, size={"max_height": 30, "max_width": 20}
        ),
        "`size=30, default_to_square=False`": lambda side: prepared(side, size=30, default_to_square=False),
        "`resample=PIL.Image.Resampling.BICUBIC`": lambda side: prepared(side, resample=Image.Resampling.BICUBIC),
        "`image_mean=0.5, image_std=0.5`": lambda side: prepared(side, image_mean=0.5, image_std=0.5),
        "`return_tensors='np'` of the constructor": lambda side: prepared(side, return_tensors="np"),
        "lists of lists of images": lambda side: prepared(side, image=[[PHOTO], [PHOTO]], **BOTH),
        "a batch `(B, H, W, C)`": lambda side: prepared(side, image=np.stack([PHOTO, PHOTO]), **BOTH),
        "a picture with alpha, `do_convert_rgb=True`": lambda side: prepared(
            side, image=Image.fromarray(PHOTO), do_convert_rgb=True
        ),
        "a picture with alpha": lambda side: prepared(side, image=np.dstack([PHOTO, MASK]), **BOTH),
        "a grey picture": lambda side: prepared(side, image=Image.fromarray(MASK), **BOTH),
        "a misspelt argument of the constructor": lambda side: prepared(side, do_resise=False),
        "`post_process_semantic_segmentation`": post_processed,
        "the same with `return_segmentation_scores=True`": lambda side: post_processed(side, scores=True),
        "the same on outputs with gradients": lambda side: post_processed(side, gradients=True),
    },
)
