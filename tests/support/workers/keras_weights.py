"""Networks of keras-hub with random weights: saves them in its formats, and what they answer.

Runs in an interpreter that has keras-hub: `python keras_weights.py FOLDER`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import keras_hub
import numpy as np

# name: blocks of each stage, channels, width of the head, side of the images (keras-hub takes squares of 32 n)
SHAPES = {
    "b0": ([2, 2, 2, 2], [32, 64, 160, 256], 256, 96),
    "b2": ([3, 4, 6, 3], [64, 128, 320, 512], 768, 64),
}
CLASSES = 5


def encoder(depths: list[int], channels: list[int], side: int) -> Any:
    return keras_hub.models.MiTBackbone(
        layerwise_depths=depths,
        hidden_dims=channels,
        image_shape=(side, side, 3),
        num_layers=4,
        layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
    )


def randomise(model: Any, rng: np.random.Generator) -> None:
    """Weights such that no layer's numbers vanish or explode; running statistics away from 0 and 1."""
    for weight in model.weights:
        shape, name = tuple(weight.shape), weight.path.rsplit("/", 1)[-1]
        if name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, shape))
        elif name in ("beta", "bias", "moving_mean"):
            weight.assign(rng.normal(0, 0.3, shape))
        elif "kernel" in name:
            depthwise = len(shape) == 4 and shape[-1] == 1
            fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
            weight.assign(rng.normal(0, fan_in**-0.5, shape))
        else:
            assert "seed" in weight.path, weight.path


def main(folder: Path) -> None:
    for number, (name, (depths, channels, width, side)) in enumerate(SHAPES.items()):
        rng = np.random.default_rng(number)
        mit = encoder(depths, channels, side)
        converter = keras_hub.layers.SegFormerImageConverter(
            image_size=(side, side),
            scale=[1 / (255 * std) for std in (0.229, 0.224, 0.225)],
            offset=[-mean / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))],
        )
        segmenter = keras_hub.models.SegFormerImageSegmenter(
            backbone=keras_hub.models.SegFormerBackbone(image_encoder=mit, projection_filters=width),
            num_classes=CLASSES,
            preprocessor=keras_hub.models.SegFormerImageSegmenterPreprocessor(converter),
        )
        randomise(segmenter, rng)
        pictures = rng.integers(0, 256, (2, side, side, 3)).astype(np.float32)
        pixels = np.asarray(keras.ops.convert_to_numpy(converter(pictures)))
        inner = keras.Model(segmenter.inputs, segmenter.output_segmentation_head.output)
        stages = keras.Model(mit.inputs, mit.pyramid_outputs).predict(pixels, verbose=0)
        classifier = keras_hub.models.MiTImageClassifier(backbone=mit, num_classes=CLASSES)
        randomise(classifier.output_dense, rng)
        classify = keras.Model(classifier.inputs, classifier.outputs)
        np.savez(
            folder / f"{name}.npz",
            classes=classify.predict(pixels, verbose=0),
            pictures=pictures,
            pixels=pixels,
            logits=inner.predict(pixels, verbose=0),
            **{f"stage{i}": stages[f"P{i + 1}"] for i in range(4)},
        )
        segmenter.save(folder / f"{name}.keras")
        segmenter.save_weights(folder / f"{name}.weights.h5")
        segmenter.save_to_preset(str(folder / f"{name}_preset"))
        classifier.save(folder / f"{name}_classifier.keras")
        mit.save_weights(folder / f"{name}_mit.weights.h5")
        mit.save_to_preset(str(folder / f"{name}_mit_preset"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
