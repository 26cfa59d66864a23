"""Images of six bands from the files to the mask: trained, evaluated and predicted from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from segtune.cli.main import main
from segtune.data.config import TransformConfig
from segtune.data.transforms import TrainTransform
from segtune.imageio import geotiff
from segtune.inference.evaluate import evaluate_model
from segtune.inference.predict import predict
from segtune.inference.processor import processor_from_transforms
from segtune.recipe.recipe import load_recipe
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

TINY = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
RECIPE = """
dataset: {{path: {data}}}
transforms: {{crop_size: 32, mean: counted, std: counted, value_range: [0, 10000]}}
model: {{config: {tiny}}}
training: {{max_steps: 2, batch_size: 2, output_dir: {run}, log_every: 1}}
"""


def write_raster(path: Path, bands: np.ndarray, nodata: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    profile = {"driver": "GTiff", "dtype": bands.dtype, "nodata": nodata}
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(path, "w", **shape, **profile) as file:
        file.write(bands)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six bands of 16 bits of which each class has one brighter; a corner without data, and another without label."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 4)):
        for number in range(count):
            labels = np.kron(rng.integers(0, 3, (4, 5)), np.ones((12, 12))).astype(np.uint8)
            bands = np.stack([1000 + 300 * k + 2000 * (labels == k) for k in range(6)])
            bands = (bands + rng.normal(0, 100, bands.shape)).astype(np.uint16)
            bands[:, :5, :5] = 0
            labels[-3:, -3:] = 200
            write_raster(root / f"images/{split}/{number}.tif", bands, 0)
            write_raster(root / f"masks/{split}/{number}.tif", labels[None], 200)
    (root / "labels.json").write_text('["water", "land", "forest"]')
    return root


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    text = RECIPE.format(data=scenes, tiny=json.dumps(TINY), run=folder / "run")
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as left:
        main(["train", str(folder / "recipe.yaml")])
    assert left.value.code in (0, None)
    return folder / "run"


def test_the_run_keeps_what_was_counted(run: Path) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    assert recipe.model.config["num_channels"] == len(recipe.transforms.mean) == 6
    assert all(0.1 < mean < 0.5 for mean in recipe.transforms.mean)
    stored = json.loads((run / "best" / "preprocessor_config.json").read_text())
    assert stored["rescale_factor"] == pytest.approx(1e-4)
    assert stored["image_mean"] == list(recipe.transforms.mean)
    assert json.loads((run / "best" / "config.json").read_text())["num_channels"] == 6


def test_evaluation_ignores_what_has_no_data(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", str(run / "best"), str(run / "recipe.yaml"), "--json", "--overlays", str(tmp_path / "o")])
    result = json.loads(capsys.readouterr().out)
    assert result["num_images"] == 4
    assert 0 <= result["mean_iou"] <= 1
    with PIL.Image.open(tmp_path / "o" / "overview.jpg") as sheet:
        assert sheet.width > 400


def test_files_of_either_kind_are_predicted_alike(run: Path, scenes: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", geotiff.read(scenes / "images/test/0.tif").data)
    for source, output in ((scenes / "images/test/0.tif", "tif"), (tmp_path / "0.npy", "npy")):
        with pytest.raises(SystemExit) as left:
            main(["predict", str(run / "best"), str(source), "--output", str(tmp_path / output), "--overlay"])
        assert left.value.code in (0, None)
    of_raster, of_array = (np.asarray(PIL.Image.open(tmp_path / kind / "0.png")) for kind in ("tif", "npy"))
    assert of_raster.shape == (48, 60)
    assert (of_raster[:5, :5] == 255).all()  # the raster says that it has no data there
    known = of_raster != 255
    assert known.sum() == 48 * 60 - 25
    np.testing.assert_array_equal(of_raster[known], of_array[known])
    np.testing.assert_array_equal(predict(run / "best", scenes / "images/test/0.tif"), of_array)


def test_a_wrong_number_of_channels_is_named(run: Path, scenes: Path, tmp_path: Path, capsys: Any) -> None:
    PIL.Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as left:
        main(["predict", str(run / "best"), str(tmp_path / "a.png"), "--output", str(tmp_path / "p")])
    assert left.value.code == 1
    assert "a.png: an image of 3 channels, but transforms.mean and std have 6 values" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["train", str(run / "recipe.yaml"), "model.config.num_channels=5", f"training.output_dir={tmp_path}/x"])
    assert left.value.code == 2
    assert "model.config.num_channels=5, but transforms.mean has 6 values" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["inflate", "average", "random"])
def test_training_from_a_checkpoint_of_rgb(run: Path, scenes: Path, tmp_path: Path, how: str) -> None:
    labels = {"num_labels": 3}
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, **labels)).save_pretrained(tmp_path / "rgb")
    options = [
        f"model.name={tmp_path / 'rgb'}",
        f"model.input_channels={how}",
        f"training.output_dir={tmp_path / 'run'}",
    ]
    with pytest.raises(SystemExit) as left:
        main(["train", str(run / "recipe.yaml"), *options, "model.config={num_channels: 6}"])
    assert left.value.code in (0, None)
    model = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "run" / "best")
    assert model.segformer.encoder.patch_embeddings[0].proj.weight.shape[1] == 6


def test_training_and_prediction_see_the_same_numbers(run: Path) -> None:
    """What the augmentation makes of an image that it leaves alone is what the saved processor makes of it."""
    settings: dict[str, Any] = {"crop_size": 40, "scale": (1, 1), "horizontal_flip": 0, "max_class_share": 1}
    for value_range in ((0, 10000), (-50, 400), None):
        recipe = load_recipe(run / "recipe.yaml")
        config = recipe.transforms.model_copy(update=settings | {"value_range": value_range})
        config = TransformConfig.model_validate(config.model_dump())
        image = np.random.default_rng(0).integers(0, 256, (40, 40, 6)).astype(np.float32 if value_range else np.uint8)
        trained, _ = TrainTransform(config, 255)(image, np.zeros((40, 40), np.uint8), (0,))
        predicted = processor_from_transforms(config)(image, return_tensors="np", input_data_format="channels_last")[
            "pixel_values"
        ][0]
        np.testing.assert_allclose(trained, predicted, atol=2e-5)


def test_evaluation_takes_rows(run: Path, scenes: Path) -> None:
    from segtune.data.dataset import open_dataset

    recipe = load_recipe(run / "recipe.yaml")
    dataset, label_map = open_dataset(recipe.dataset)
    model = SegformerForSemanticSegmentation.from_pretrained(run / "best")
    seen = []
    evaluate_model(
        model,
        dataset["test"],
        label_map,
        processor_from_transforms(recipe.transforms),
        progress=False,
        on_image=lambda i, image, labels, prediction: seen.append(
            (i, image.dtype, image.shape, labels[0, 0], labels[-1, -1])
        ),
    )
    assert seen == [(i, np.uint8, (48, 60, 3), 255, 255) for i in "0123"]
