"""The model card's text and metadata, from facts written here."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from segtune.evaluation.evaluation import Evaluation
from segtune.hub.licenses import Ancestor, License, inherit
from segtune.hub.model_card import Card, DataFacts, Results, describe_run, lineage, read_front_matter
from segtune.hub.stage import stage
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import show_value
from support.run_folders import names, write_run

LABELS = LabelMap.from_ids({7: "road", 8: "road", 11: "a|b", 0: None}, colors=["#804080", "#000001"])
CONFIG = {**LABELS.config_fields(), "num_channels": 3}
SCORES = {
    "mean_iou": 0.46189,
    "mean_accuracy": 0.5,
    "overall_accuracy": 0.75,
    "per_class": {"road": {"iou": 0.46189, "accuracy": 0.5}, "a|b": {"iou": None, "accuracy": None}},
}
RECIPE = {
    "training": {"batch_size": 8, "accumulation_steps": 2, "max_steps": 300, "learning_rate": 6e-5},
    "transforms": {"crop_size": 512},
}


def card(**changes: Any) -> Card:
    fields: dict[str, Any] = {
        "repo": "me/roads",
        "config": CONFIG,
        "preprocessor": {"do_resize": False},
        "parameters": 3_714_658,
        "recipe": RECIPE,
        "recipe_text": "# all of it\ntraining: {max_steps: 300}\n",
        "data": DataFacts("Roads", {"train": 90, "val": 10}),
        "line": [],
        "license": License(),
        "results": Results("val", SCORES),
        "environment": {"torch": "2.13", "num_processes": 4},
    }
    return Card(**{**fields, **changes})


def metadata(one: Card) -> dict[str, Any]:
    return dict(yaml.safe_load(str(one).split("---\n")[1]))


def section(one: Card, title: str) -> str:
    return re.split(r"^## ", str(one).split(f"## {title}\n")[1], flags=re.MULTILINE)[0].strip()


# --- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_of_weights_from_scratch() -> None:
    found = metadata(card())
    assert found["pipeline_tag"] == "image-segmentation" and found["library_name"] == "transformers"
    assert "segtune" in found["tags"] and "semantic-segmentation" in found["tags"]
    assert not {"license", "base_model", "datasets", "widget"} & found.keys()
    (entry,) = found["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "roads"
    assert result["dataset"] == {"type": "roads", "name": "Roads", "split": "val"}
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "mean IoU": 0.4619,
        "mean class accuracy": 0.5,
        "pixel accuracy": 0.75,
        "IoU of road": 0.4619,
    }


def test_metadata_of_fine_tuned_weights() -> None:
    line = [Ancestor("nvidia/mit-b0@main", {"license": "other"})]
    data = DataFacts("Side walks", hub_id="you/sidewalk")
    found = metadata(card(line=line, license=inherit(line, None), data=data, example="example.jpg"))
    assert found["base_model"] == "nvidia/mit-b0" and found["base_model_relation"] == "finetune"
    assert found["license"] == "other" and found["license_name"] == "nvidia-source-code-license"
    assert found["license_link"].startswith("https://")
    assert found["datasets"] == ["you/sidewalk"]
    assert found["widget"] == [{"src": "example.jpg", "example_title": "Side walks"}]
    assert found["model-index"][0]["results"][0]["dataset"]["type"] == "you/sidewalk"


def test_folder_is_no_base_model() -> None:
    line = [Ancestor("runs/first/best", {}), Ancestor("you/base", {})]
    assert metadata(card(line=line))["base_model"] == "you/base"


def test_names_that_yaml_would_misread_survive() -> None:
    found = metadata(card(data=DataFacts("no: yes # é"), results=Results("test", SCORES)))
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == "no: yes # é"


# --- text ------------------------------------------------------------------------------------------------------------


def test_labels_have_colors_and_the_values_of_the_masks() -> None:
    assert section(card(), "Labels").splitlines() == [
        "| id | class | colour | in the masks |",
        "| --- | --- | --- | --- |",
        "| 0 | road | `#804080` | 7, 8 |",
        "| 1 | a&#124;b | `#000001` | 11 |",
        "",
        "Ignored in masks: 0.",
    ]


def test_results_without_intervals() -> None:
    assert section(card(), "Results").splitlines() == [
        "On the 10 images of the val split, at the size of the masks. The weights were chosen by this split, which "
        "flatters them.",
        "",
        "| class | IoU | accuracy |",
        "| --- | --- | --- |",
        "| road | 0.462 | 0.500 |",
        "| a&#124;b | absent | absent |",
        "| **mean** | 0.462 | 0.500 |",
    ]


def test_results_with_intervals() -> None:
    results = Results("test", SCORES, {None: (0.4, 0.5), "road": (0.41, 0.52), "a|b": (None, None)}, "How it was done.")
    lines = section(card(results=results), "Results").splitlines()
    assert lines[0] == "On the test split, at the size of the masks. How it was done."
    assert lines[4:] == [
        "| road | 0.462 | [0.410, 0.520] | 0.500 |",
        "| a&#124;b | absent |  | absent |",
        "| **mean** | 0.462 | [0.400, 0.500] | 0.500 |",
    ]
    names = [metric["name"] for metric in metadata(card(results=results))["model-index"][0]["results"][0]["metrics"]]
    assert names[0] == "mean IoU [0.400, 0.500]" and names[-1] == "IoU of road [0.410, 0.520]"


def test_weights_without_any_evaluation() -> None:
    one = card(results=None)
    assert section(one, "Results") == "The weights were not evaluated."
    assert "model-index" not in metadata(one)


def test_training_counts_the_images_of_all_processes() -> None:
    lines = section(card(), "Training").splitlines()
    assert lines[2:6] == [
        "| images in a step | 64 |",
        "| training.max_steps | 300 |",
        "| training.learning_rate | 6e-05 |",
        "| transforms.crop_size | 512 |",
    ]
    assert "```yaml\n# all of it\ntraining: {max_steps: 300}\n```" in str(card())


def test_non_commercial_use_is_loud() -> None:
    line = [Ancestor("nvidia/mit-b0", {})]
    data = DataFacts("CamVid", license="CC BY-NC 4.0", is_non_commercial=True)
    text = str(card(line=line, license=inherit(line, None), data=data))
    top = text.split("# roads")[1].split("## Labels", maxsplit=1)[0]
    assert "> **Not for commercial use:** the weights are under [other (nvidia-source-code-license)](" in top
    assert "inherited from nvidia/mit-b0." in top
    assert "> **The training data is not for commercial use:** CC BY-NC 4.0." in top
    assert "Fine-tuned from nvidia/mit-b0 on CamVid" in top
    assert "not for commercial" not in str(card()).lower()


def test_a_teacher_is_named_with_its_licence() -> None:
    line = [Ancestor("you/large", {}), Ancestor("nvidia/mit-b5", {})]
    one = card(teacher=line, license=License({"license": "mit"}), data=DataFacts("Roads", is_non_commercial=True))
    nvidia = "[other (nvidia-source-code-license)](https://github.com/NVlabs/SegFormer/blob/master/LICENSE)"
    assert (
        f"> **The teacher is not for commercial use:** these weights learned from you/large, which is under {nvidia}, "
        in str(one)
    )
    assert (
        "on Roads, with segtune. It learned from the answers of a teacher as well, you/large (distillation).\n"
        in str(one)
    )
    assert f"- Learned from the teacher you/large: {nvidia}, inherited from nvidia/mit-b5." in section(one, "Licence")
    assert "- Weights: mit, chosen by the owner." in section(one, "Licence") and metadata(one)["license"] == "mit"
    quoted = str(one).split("# roads\n\n")[1].split("\n\n")[0].splitlines()
    assert len(quoted) == 3 and all(part.startswith(">") for part in quoted)  # a paragraph of each
    free = card(teacher=[Ancestor("/home/someone/runs/big/best", {"license": "mit"})])
    assert "- Learned from the teacher big/best: mit." in section(free, "Licence")
    assert "someone" not in str(free) and "not for commercial" not in str(free)
    unknown = card(teacher=[Ancestor("you/large", {})])
    assert "- Learned from the teacher you/large: not stated." in section(unknown, "Licence")
    assert "eacher" not in str(card())


def test_pictures_without_labels_are_told() -> None:
    one = card(unlabelled="more|drives")
    assert "It learned from pictures without labels as well, those of more&#124;drives, which" in str(one)
    assert "Pictures without labels: more&#124;drives. Their licence is not known here." in section(one, "Data")
    assert "- Pictures without labels (more&#124;drives): not stated." in section(one, "Licence").splitlines()
    assert "without labels" not in str(card())


def test_licenses_of_weights_and_data() -> None:
    assert "the owner has not stated a licence" in section(card(), "Licence")
    chosen = card(license=License({"license": "apache-2.0"}))
    assert "- Weights: apache-2.0, chosen by the owner." in section(chosen, "Licence")
    assert "- Data: not stated." in section(chosen, "Licence")
    unknown = card(line=[Ancestor("you/base", {})])
    assert "- Started from you/base: not stated." in section(unknown, "Licence")


def test_limits_name_weak_and_untested_classes() -> None:
    text = section(card(preprocessor={"size_divisor": 32, "window": 512, "stride": None}), "Limits")
    assert "lowest IoU: road (0.46)" in text
    assert "val split does not hold them: a&#124;b" in text
    assert "with `size_divisor` 32, `window` 512 (see" in text
    assert "preprocessor_config" not in section(card(preprocessor={"size_divisor": 1, "window": None}), "Limits")


def test_each_kind_of_model_gets_snippets_that_fit_it() -> None:
    three = section(card(with_code=True), "How to use it")
    assert 'segtune.predict("me/roads", "photo.jpg")' in three and 'pipeline("image-segmentation"' in three
    assert "post_process_semantic_segmentation" in three and "trust_remote_code=True" in three
    one_logit = CONFIG | {"id2label": {"0": "road"}}
    assert "argmax" not in section(card(), "How to use it")
    single = section(card(config=one_logit), "How to use it")
    assert "logits[0, 0] > 0" in single and "pipeline" not in single and "trust_remote_code" not in single
    bands = section(card(config=CONFIG | {"num_channels": 12}), "How to use it")
    assert "(height, width, 12)" in bands and "AutoImageProcessor" not in bands


HOSTILE = "a|b\n<script>`*c*`"


def test_names_of_others_break_neither_tables_nor_the_page() -> None:
    label_map = LabelMap.from_ids({7: HOSTILE, 8: "road"})
    row = {"iou": 0.2, "accuracy": 0.3}
    scores = {**SCORES, "per_class": {HOSTILE: row, "road": {"iou": None, "accuracy": None}}}
    data = DataFacts(HOSTILE, {HOSTILE: 3}, license=HOSTILE, source=HOSTILE)
    config = CONFIG | label_map.config_fields()
    license = License({"license": "other", "license_name": HOSTILE})
    one = card(
        config=config, results=Results("val", scores), data=data, license=license, environment={"torch": HOSTILE}
    )
    shown = "a&#124;b &lt;script>&#96;&#42;c&#42;&#96;"
    for title, line in (
        ("Labels", f"| 0 | {shown} | `{show_value(label_map.colors[0])}` | 7 |"),
        ("Results", f"| {shown} | 0.200 | 0.300 |"),
        ("Data", f"{shown}. Licence of the data: {shown}. Source: {shown}."),
        ("Data", f"| {shown} | 3 |"),
        ("Limits", f"- The classes with the lowest IoU: {shown} (0.20)."),
        ("Licence", f"- Weights: other ({shown}), chosen by the owner."),
        ("Environment", f"| torch | {shown} |"),
    ):
        assert line in section(one, title).splitlines()
    assert "<script" not in str(one).split("---\n", 2)[2]
    metrics = metadata(one)["model-index"][0]["results"][0]["metrics"]
    assert metrics[-1]["name"] == f"IoU of {HOSTILE}"  # which no page shows as Markdown


PRIVATE = "/home/someone/my data/roads"


@pytest.mark.parametrize(
    ("recipe", "shown"),
    [
        (f"dataset: {{path: '{PRIVATE}'}}\n", "dataset: {path: roads}"),
        (
            f"# {PRIVATE}/\ndataset:\n  path: {PRIVATE}/\n  split_file: {PRIVATE}/split.json\n",
            "  split_file: split.json",
        ),
        ("training:\n  output_dir: ~/runs/a\n", "  output_dir: a"),
        ("dataset:\n  path: C:\\Users\\someone\\roads\n", "  path: roads"),
        (f"dataset:\n  path:\n  - {PRIVATE}\n", "  - roads"),
        (yaml.safe_dump({"dataset": {"path": f"{PRIVATE}/{'a long name ' * 9}end"}}), "end"),  # over two lines
        ("training: {max_steps: ~}\n", "training: {max_steps: ~}"),
        ("dataset:\n  path: hub://user/roads\n", "  path: hub://user/roads"),
        ("dataset:\n  path: data/roads\nmodel:\n  name: nvidia/mit-b0\n", "  path: data/roads"),
    ],
)
def test_recipe_tells_no_path_of_this_machine(recipe: str, shown: str) -> None:
    text = str(card(recipe_text=recipe))
    assert shown in text and "someone" not in text and "~/" not in text
    assert yaml.safe_load(section(card(recipe_text=recipe), "Training").split("```")[-2].removeprefix("yaml"))


def test_weights_and_data_of_a_folder_are_named_without_the_way_to_them(tmp_path: Path, target: Path) -> None:
    line = [Ancestor("/home/someone/runs/first/best", {"license": "mit"}), Ancestor("/home/someone/converted", {})]
    text = str(card(line=line, license=inherit(line, None)))
    assert "Fine-tuned from first/best on" in text and "- Started from converted: not stated." in text
    assert "inherited from first/best." in text and "someone" not in text
    run = write_run(tmp_path / "run", str(tmp_path / "roads"))
    assert str(tmp_path) not in str(card_of(run, target))


def test_teacher_and_unlabelled_pictures_are_those_of_the_recipe(run: Path, target: Path) -> None:
    recipe = (
        (run / "recipe.yaml")
        .read_text()
        .replace("training: {}", "training: {distill: {teacher: you/large@v2, weight: 1.0}, semi: {weight: 1.0}}")
    )
    (run / "recipe.yaml").write_text(recipe.replace("path: data", f"path: data, unlabelled: '{PRIVATE}/more/'"))
    cards = {"you/large": {"license": "cc-by-nc-4.0"}}
    one = card_of(run, target, lambda name, kind: cards.get(name, {}))
    assert "learned from you/large@v2, which is under cc-by-nc-4.0." in str(one)
    assert "those of more, which" in str(one) and "someone" not in str(one)


@pytest.mark.parametrize(("number", "text"), [(3_714_658, "3.7 million"), (51_234, "51,234")])
def test_size_in_words(number: int, text: str) -> None:
    assert f"A SegFormer of {text} parameters" in str(card(parameters=number))


def test_front_matter_is_read_where_there_is_one() -> None:
    assert read_front_matter("---\nlicense: mit\n---\ntext\n---\n") == {"license": "mit"}
    assert read_front_matter("\ufeff---\r\nlicense: mit\r\n---\r\n") == {"license": "mit"}
    assert read_front_matter("no card") == read_front_matter("---\n[broken\n---\n") == {}
    assert read_front_matter("---\n- a list\n---\n") == {}


def nothing_on_the_hub(name: str, kind: str) -> Mapping[str, Any]:
    return {}


def card_of(run: Path, target: Path, read: Any = nothing_on_the_hub) -> Any:
    checkpoint = stage(run, target, with_code=False, pictures=True)
    return describe_run(target, checkpoint, "me/x", [], License(), read)


def test_results_are_those_of_the_weights(run: Path, target: Path, tmp_path: Path) -> None:
    card = card_of(run, target)
    assert card.results.scores["mean_iou"] == 0.4 and card.results.split == "val"
    assert card.parameters == 7
    assert card.environment == {"torch": "2"}
    assert card.data.images == {"train": 2, "val": 1}
    assert (card.pictures, card.example, card.with_code) == ([], None, False)
    (tmp_path / "last").mkdir()
    assert card_of(run / "final", tmp_path / "last").results.scores["mean_iou"] == 0.3


def test_another_metric_may_have_chosen_the_weights(run: Path, target: Path) -> None:
    with (run / "recipe.yaml").open("a") as file:
        file.write("transforms: {}\n")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(
        text.replace("training: {}", "training: {best_metric: mean_iou, best_direction: min}")
    )
    assert card_of(run, target).results.scores["mean_iou"] == 0.2


def save_evaluation(run: Path, split: str, checkpoint: str, correct: int) -> Path:
    """Of three images of ten pixels each, `correct` of them right in every image."""
    evaluation = Evaluation(["sky", "road"])
    labels = np.array([[0] * 5 + [1] * 5], dtype=np.uint8)
    for number in range(3):
        prediction = labels.copy()
        prediction[0, : 10 - correct] = 1
        evaluation.add(f"{split}-{number}", labels, prediction)
    evaluation.about = {"checkpoint": checkpoint}
    evaluation.save(run / f"evaluation-{split}.npz")
    return run / f"evaluation-{split}.npz"


def test_counts_of_the_weights_give_intervals_on_test_before_val(run: Path, target: Path, tmp_path: Path) -> None:
    save_evaluation(run, "val", str(run / "best"), correct=6)
    results = card_of(run, target).results
    assert (results.split, results.scores["per_class"]["sky"]["iou"]) == ("val", 0.2)
    assert results.intervals["sky"] == pytest.approx([0.2, 0.2]) and set(results.intervals) == {None, "sky", "road"}
    assert results.how.startswith("Intervals: 95 %, BCa bootstrap of 10000 resamples")
    assert "evaluation-val.npz" in names(target)
    save_evaluation(run, "test", "best", correct=8)
    (tmp_path / "second").mkdir()
    results = card_of(run, tmp_path / "second").results
    assert (results.split, results.scores["num_images"]) == ("test", 3)
    assert results.scores["per_class"]["sky"]["iou"] == pytest.approx(3 / 5)


def test_counts_of_other_weights_are_left_out(run: Path, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = save_evaluation(run, "test", str(run / "best"), correct=8)
    os.utime(earlier, (1, 1))
    save_evaluation(run, "val", str(run / "final"), correct=8)
    (run / "evaluation-mine.npz").write_bytes(b"torn")
    assert card_of(run, target).results.scores["mean_iou"] == 0.4
    assert not any(name.endswith(".npz") for name in names(target))
    assert "left out: " in caplog.text and "evaluation-mine.npz" in caplog.text


def test_data_says_its_name_source_and_license(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    about = {"name": "camvid", "classes": {}, "source": "a drive.", "licence_as_stated": "CC BY-NC 4.0, research."}
    (folder / "classes.json").write_text(json.dumps(about))
    card = card_of(write_run(tmp_path / "run", str(folder)), target)
    assert (card.data.name, card.data.source, card.data.license) == ("camvid", "a drive", "CC BY-NC 4.0, research")
    assert card.data.is_non_commercial
    (folder / "README.md").write_text("---\npretty_name: CamVid\nlicense: cc-by-4.0\n---\n")
    shutil.rmtree(target)
    target.mkdir()
    again = card_of(tmp_path / "run", target)
    assert (again.data.name, again.data.license, again.data.is_non_commercial) == ("CamVid", "cc-by-4.0", False)


def test_data_that_is_not_here_is_only_named(run: Path, target: Path) -> None:
    card = card_of(run, target)
    assert (card.data.name, card.data.license, card.data.hub_id) == ("data", "not stated", None)


def test_data_of_the_hub_is_described_by_its_card(tmp_path: Path, target: Path) -> None:
    def read(name: str, kind: str) -> Mapping[str, Any]:
        assert (name, kind) == ("you/roads", "dataset")
        return {"pretty_name": "Roads", "license": "cc-by-4.0"}

    card = card_of(write_run(tmp_path / "run", "hub://you/roads"), target, read)
    assert (card.data.name, card.data.hub_id, card.data.license) == ("Roads", "you/roads", "cc-by-4.0")


@pytest.mark.parametrize(("path", "hub_id"), [("gone/folder", None), ("hub://you/roads", "you/roads")])
def test_folder_that_is_gone_is_not_taken_for_data_of_the_hub(
    tmp_path: Path, target: Path, path: str, hub_id: str | None
) -> None:
    assert card_of(write_run(tmp_path / "run", path), target).data.hub_id == hub_id


def test_line_goes_through_run_folders_and_cards(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", name="nvidia/mit-b0")
    second = write_run(tmp_path / "second", name=str(first / "best"))
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "README.md").write_text("---\nlicense: mit\n---\n")
    found = lineage(str(second / "best"), lambda name, kind: {"license": "other", "kind": kind})
    assert [ancestor.name for ancestor in found] == [str(second / "best"), str(first / "best"), "nvidia/mit-b0"]
    assert found[2].metadata == {"license": "other", "kind": "model"}
    assert lineage(str(tmp_path / "converted"), nothing_on_the_hub)[0].license == {"license": "mit"}
    assert lineage(None, nothing_on_the_hub) == []


def test_exports_are_told_with_their_certificates() -> None:
    assert "## Exported files" not in str(card())
    entry = {"file": "product.onnx", "runtime": "onnxruntime", "precision": "fp32", "agreement": 0.99999}
    entry |= {"mean_iou_of_agreement": 0.9999, "milliseconds": {"checkpoint": 20.0, "export": 8.25}}
    found = section(
        card(exports=[{"compared_on": "39 images of the val split of tiles", "files": [entry]}]), "Exported files"
    )
    assert "39 images of the val split of tiles" in found
    assert "| `product.onnx` | onnxruntime, fp32 | 0.999990 | 0.999900 | 8.2 | 20.0 |" in found
