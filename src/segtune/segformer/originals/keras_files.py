"""Checkpoints of keras-hub: SegFormer and its encoder MiT, as `.weights.h5`, `.keras` or the folder of a preset.

Keras 3 saves the variables of a layer under the path of the layer in its model: the layers of a functional model by
their class, numbered in the order of the graph, the parts of a layer by the attribute that holds them, and below that
`vars/0`, `vars/1`, … in the order of creation. What is what is found by the end of such a path (`keras_layers`).

keras-hub's network is the published one but for two things: its GELU is the approximation by tanh, which the
configuration states, and the layer norms of its blocks run with eps 1e-6 instead of 1e-5, which no configuration can
state.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from segtune.errors import DataError, listed
from segtune.files import decode_text, parse_json
from segtune.segformer.originals import hdf5
from segtune.segformer.originals.keras_layers import Variables, encoder_tensors, has_encoder, head_tensors
from segtune.segformer.originals.source import Source

WEIGHTS = ("task.weights.h5", "model.weights.h5")  # in the folder of a preset; a .keras file has the second
_DESCRIBED = ("task.json", "config.json", "image_converter.json", "preprocessor.json")  # beside them
_LARGEST_TEXT, _LARGEST_WEIGHTS = 2**24, 2**31  # bytes; of the largest preset: 4 KB and 340 MB
_FIX = "save it with model.save('NAME.keras') or model.save_weights('NAME.weights.h5')"

_ASIDE = {  # what training has and the network has not
    "states of random generators": r"(?:^|/)(seed|seed_generator)(?:_\d+)?$|(?:^|/)(dropout|drop_path)(?:_\d+)?$",
    "the optimizer": r"(?:^|/)optimizer(/|$)",
    "metrics": r"(?:^|/)(_?metrics|compile_metrics|_loss_tracker)(/|$)",
}
_STAGE_NORM = r"layer_norm\.\d+\.weight"


def is_keras(path: Path) -> bool:
    """Whether a path is that of a checkpoint of Keras: a folder, an HDF5 file or an archive `.keras`, whole or not."""
    if path.is_dir() or path.suffix in (".h5", ".hdf5", ".keras"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(hdf5.SIGNATURE)) == hdf5.SIGNATURE
    except OSError:
        return False


def read_keras(path: Path, *, encoder_only: bool = False) -> Source:
    """What a checkpoint of keras-hub holds: an encoder MiT, a classifier of it, or a SegFormer.

    Args:
        path: a file `.weights.h5` or `.keras`, or the folder of a preset.
        encoder_only: leave the head out.

    Raises:
        UsageError: h5py is missing.
        DataError: no such file, a damaged one, one that reaches into other files, or one of another network.
    """
    layers = _layers(path)
    described = list(_described(path))
    aside = {
        part: [name for key in layers if re.search(pattern, key) for name in _names(key, layers[key])]
        for part, pattern in _ASIDE.items()
    }
    left = {key: value for key, value in layers.items() if not re.search("|".join(_ASIDE.values()), key)}
    about = next((found for value in described for found in _holding(value, "hidden_dims")), {})
    encoder = encoder_tensors(path, left, _whole_numbers(about, "layerwise_depths", "depths"))
    taken = {f"encoder.{key}": value for key, value in encoder.items()}
    if encoder_only:
        aside["the head"] = [name for key in left for name in _names(key, left[key])]
        left.clear()
    elif head := head_tensors(left, [len(encoder[key]) for key in sorted(encoder) if re.fullmatch(_STAGE_NORM, key)]):
        taken = {f"segformer.{key}": value for key, value in taken.items()} | head
    fields = {
        "hidden_act": "gelu_pytorch_tanh",
        "num_attention_heads": _whole_numbers(about, "layerwise_num_heads", "blockwise_num_heads"),
        "strides": _whole_numbers(about, "layerwise_strides", "strides"),
    }
    return Source(
        layout="keras",
        tensors=taken,
        unknown={
            name: torch.from_numpy(value)
            for key, found in left.items()
            for name, value in zip(_names(key, found), found.values(), strict=True)
        },
        fields={key: value for key, value in fields.items() if value},
        processor=_normalisation(described),
        left_out={part: names for part, names in aside.items() if names},
        stated=_stated(path),
    )


def _names(layer: str, variables: Variables) -> list[str]:
    """The paths of a layer's variables in its file."""
    return [f"{layer}/vars/{number}" for number in variables]


# --- files -----------------------------------------------------------------------------------------------------------


def _layers(path: Path) -> dict[str, Variables]:
    """The variables of every layer in a checkpoint, by the path of the layer.

    Of a preset, the first file that has an encoder is the last one that is read: the presets of 2024 have all in both.
    """
    layers: dict[str, Variables] = {}
    others: list[str] = []
    for name, content in _weights(path):
        with content, hdf5.opened(name, content) as found:
            for place, dataset in found.items():
                layer, _, number = place.rpartition("vars/")
                if not number.isdigit():
                    others.append(place)
                    continue
                layers.setdefault(layer.rstrip("/"), {})[int(number)] = hdf5.read(name, place, dataset)
        if has_encoder(layers):
            break
    if not has_encoder(layers):
        names = listed([*layers, *others], 3) or "nothing"
        raise DataError(f"{path} is no SegFormer of keras-hub: it holds {names}. If it is one, {_FIX}")
    return layers


def _weights(path: Path) -> Iterator[tuple[str, Any]]:
    """The files of weights in a checkpoint, open, with their names."""
    if path.is_dir():
        files = [path / name for name in WEIGHTS if (path / name).is_file()]
        if not files:
            if (path / "model.safetensors").is_file():
                raise DataError(f"{path} needs no conversion: it is a checkpoint, for model.name")
            raise DataError(f"{path} is no preset of keras-hub: it holds neither {' nor '.join(WEIGHTS)}")
        yield from ((str(file), file.open("rb")) for file in files)
    elif path.suffix == ".keras":
        yield str(path), io.BytesIO(_member(path, WEIGHTS[1], _LARGEST_WEIGHTS))
    elif path.is_file():
        yield str(path), path.open("rb")
    else:
        raise DataError(f"{path}: no such file")


def _member(path: Path, name: str, largest: int) -> bytes:
    """A file in an archive of Keras.

    Raises:
        DataError: no such archive or file, a damaged one, or one larger than `largest`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := archive.getinfo(name).file_size) > largest:
                raise DataError(f"{path}: {name} has {size:,} bytes, which is more than any network needs")
            return archive.read(name)
    except KeyError as error:
        raise DataError(f"{path} holds no {name}: {_FIX}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged, or no archive of Keras ({error}): fetch or copy it once more") from error


def _described(path: Path) -> Iterator[Any]:
    """What stands in JSON beside the weights: the configuration of the model, and how pictures are converted."""
    folder = path if path.is_dir() else path.parent if path.name in WEIGHTS else None
    texts = [file.read_bytes() for name in _DESCRIBED if folder and _is_short(file := folder / name)]
    if path.suffix == ".keras" and path.is_file():
        texts.append(_member(path, "config.json", _LARGEST_TEXT))
    for text in texts:
        try:
            yield parse_json(decode_text(text))
        except ValueError as error:
            raise DataError(f"{path}: its configuration is damaged ({error}): fetch or copy it once more") from error


def _is_short(file: Path) -> bool:
    return file.is_file() and file.stat().st_size <= _LARGEST_TEXT


def _stated(path: Path) -> str | None:
    """The licence that the card of a preset states, in its front matter or in a sentence."""
    readme = path / "README.md"
    if not path.is_dir() or not _is_short(readme):
        return None
    text = decode_text(readme.read_bytes(), errors="replace")
    found = re.search(r"\A---\n(?:.*\n)*?license: *(\S+)", text) or re.search(
        r"[Ww]eights are released under (?:the )?([^.\n]{1,80})", text
    )
    return re.sub(r"\]\(.*|\[", "", found[1]).strip() if found else None


def _holding(value: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON value that has a key."""
    pending = deque([value])
    while pending:
        item = pending.popleft()
        if isinstance(item, dict):
            if key in item:
                yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _whole_numbers(about: Mapping[str, Any], *keys: str) -> list[int]:
    """A list of whole numbers under one of several keys; empty where there is none."""
    found = next((about[key] for key in keys if key in about), None)
    is_list = isinstance(found, list) and all(isinstance(item, int) and item > 0 for item in found)
    return list(found) if found and is_list else []


def _normalisation(described: Sequence[Any]) -> dict[str, Any]:
    """How pictures are normalised, as the image processor has it.

    keras-hub computes `scale x + offset`, older versions `(scale x - mean) / sqrt(variance)`; we compute
    `(x / 255 - mean) / std`.
    """
    for found in (item for value in described for item in _holding(value, "scale")):
        scale, offset = _three(found["scale"]), _three(found.get("offset") or 0.0)
        mean, variance = _three(found.get("mean") or 0.0), _three(found.get("variance") or 1.0)
        if not (scale and offset and mean and variance) or min(*scale, *variance) <= 0:
            continue
        gain = [s / v**0.5 for s, v in zip(scale, variance, strict=True)]
        shift = [(o - m) / v**0.5 for o, m, v in zip(offset, mean, variance, strict=True)]
        std = [1 / (255 * g) for g in gain]
        return {
            "image_mean": [round(-o * s, 6) for o, s in zip(shift, std, strict=True)],
            "image_std": [round(s, 6) for s in std],
        }
    return {}


def _three(value: Any) -> list[float]:
    """A number for each of three channels; empty where a value is none."""
    values = value if isinstance(value, list) else [value] * 3
    return [float(item) for item in values] if len(values) == 3 and all(map(_is_number, values)) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
