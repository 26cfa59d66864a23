from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import segtune
from segtune.config import may_change_on_resume, section_of, walk_fields
from segtune.data.config import DatasetConfig, TransformConfig
from segtune.errors import DataError, UsageError
from segtune.finetune import train
from segtune.hub.config import HubConfig
from segtune.recipe.recipe import Recipe, load_recipe, load_recipe_or_data, refuse_another_run, resolved
from segtune.recipe.search import SearchConfig
from segtune.recipe.shipped import list_recipes, recipe_folder, recipe_table
from segtune.training.class_weights import counted_weights
from segtune.training.config import DistillConfig, LoraConfig, LossConfig, ModelConfig, SemiConfig, TrainingConfig

DATASET = "dataset: {path: data/x}\n"
TINY = {"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_recipe(text: str | bytes) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_recipe


def fault(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


# a data set in place of a recipe


def test_a_folder_stands_for_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe_or_data(str(tmp_path), ["transforms.crop_size=64"])
    assert recipe.dataset == DatasetConfig(path=str(tmp_path))
    assert (recipe.transforms.crop_size, recipe.training.output_dir) == (64, f"runs/{tmp_path.name}")
    assert load_recipe_or_data("demo") == load_recipe("demo")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert load_recipe_or_data("demo").dataset.path == "segtune://earth"  # a recipe's name comes first
    assert load_recipe_or_data("./demo").dataset.path == "./demo"
    with pytest.raises(UsageError, match="'nothing': no shipped recipe of this name"):
        load_recipe_or_data("nothing")
    with pytest.raises(UsageError, match=r"transforms\.crop = 3: no such key"):
        load_recipe_or_data(str(tmp_path), ["transforms.crop=3"])


# shipped recipes


def test_shipped_recipes_are_valid() -> None:
    recipes = list_recipes()
    assert len(recipes) >= 22  # test_shipped_recipes.py has the rest
    for recipe in recipes:
        assert load_recipe(recipe.path) == load_recipe(recipe.name)


def test_readme_holds_the_table_made_from_the_headers() -> None:
    readme = (recipe_folder() / "README.md").read_text(encoding="utf-8")
    assert recipe_table(list_recipes()) in readme, "paste the output of: segtune recipes --markdown"


def test_demo_needs_no_download() -> None:
    demo = load_recipe("demo")
    assert demo.model.name is None
    assert demo.dataset.path == "segtune://earth"
    assert demo.training.output_dir == "runs/demo"


def test_camvid_fits_the_documented_overrides() -> None:
    recipe = load_recipe(
        "camvid",
        [
            "dataset.path=../shared/data/camvid",
            "training.output_dir=runs/camvid",
            "training.max_steps=300",
            "model.name=null",
        ],
    )
    assert (recipe.dataset.path, recipe.training.output_dir) == ("../shared/data/camvid", "runs/camvid")
    assert (recipe.training.max_steps, recipe.model.name) == (300, None)
    assert recipe.training.warmup < 100


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6e-5", 6e-5),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        (".inf", float("inf")),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("true", True),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'6e-5'", "6e-5"),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(write: Any, text: str, value: Any) -> None:
    fields = load_recipe(write(f"dataset: {{path: x, labels: {{7: {text}}}}}\n")).dataset.labels
    assert fields == {7: value}
    assert type(fields[7]) is type(value)


def test_numbers_written_as_text_are_coerced_by_the_field(write: Any) -> None:
    recipe = load_recipe(write(f'{DATASET}training: {{learning_rate: "6e-5", max_steps: "30"}}'))
    assert (recipe.training.learning_rate, recipe.training.max_steps) == (6e-5, 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty, not a mapping of the sections dataset, transforms, model, training"),
        ("[1, 2]", "the file holds [1, 2], not a mapping"),
        ("dataset: {path: x}\ndataset: {path: y}\n", ", line 2, column 1: the key 'dataset' is given twice"),
        ("dataset:\n  path: x\n  path: y\n", ", line 3, column 3: the key 'path' is given twice"),
        ("dataset:\n\tpath: x\n", ", line 2, column 1: while scanning for the next token found character '\\t'"),
        ("dataset: {path: x\n", ", line 2, column 1: while parsing a flow mapping expected ',' or '}'"),
        ("dataset: {path: x}\n---\na: 1\n", ", line 2, column 1: expected a single document in the stream"),
        ("dataset: !!python/name:os.system x", "could not determine a constructor for the tag"),
        ("dataset: {path: !!int abc}", "invalid literal for int()"),
        (b"dataset: {path: \xff}", "unacceptable"),
    ],
)
def test_files_that_are_no_recipe(write: Any, text: str | bytes, message: str) -> None:
    path = write(text)
    found = fault(path)
    assert found.startswith(str(path))
    assert message in found


def test_merge_keys_are_no_inheritance(write: Any) -> None:
    path = write("training: &base {max_steps: 3}\ndataset: {path: x, <<: *base}\n")
    assert "dataset.<< = " in fault(path)


# strictness and overrides


def test_misspelt_names_are_named_with_the_nearest(write: Any) -> None:
    path = write(f"{DATASET}trainig: {{max_steps: 3}}\n")
    assert fault(path) == f"{path}: trainig: no such section; did you mean 'training'?"
    path = write(f"{DATASET}training: {{learnig_rate: 6e-5}}\n")
    assert fault(path) == (
        f"{path}: training.learnig_rate = 6e-05: no such key; did you mean 'training.learning_rate'?"
    )


@pytest.mark.parametrize(
    ("key", "close"),
    [
        ("transforms.eval_short_side", "evaluation.short_side"),
        ("transforms.eval_size_divisor", "evaluation.size_divisor"),
        ("transforms.eval_window", "evaluation.window"),
        ("transforms.eval_stride", "evaluation.stride"),
        ("training.eval_batch_size", "evaluation.batch_size"),
        ("evaluation.eval_every", "training.eval_every"),
        ("training.eval_evry", "training.eval_every"),
        ("model.lora_rank", "model.lora.rank"),
    ],
)
def test_keys_that_stand_in_another_section(write: Any, key: str, close: str) -> None:
    assert fault(write(DATASET), f"{key}=32") == f"command line: {key} = 32: no such key; did you mean '{close}'?"


def test_misspelt_field_of_the_model_configuration(write: Any) -> None:
    path = write(f"{DATASET}model: {{config: {{drop_path_rat: 0.2}}}}\n")
    found = fault(path)
    assert found.startswith(f"{path}: model")
    assert "drop_path_rat'" in found and "'drop_path_rate'" in found


def test_all_faults_are_reported_at_once_with_their_origin(write: Any) -> None:
    path = write("dataset: {path: 3}\ntrainig: {}\ntraining: {max_steps: many, batch_size: 0}\n")
    found = fault(path, "training.max_steps=lots", "transform.crop_size=4", "seed", "model.nam=x")
    assert found.splitlines() == [
        "7 faults in the recipe",
        "  command line: 'seed' does not have the form section.key=value",
        f"  {path}: trainig: no such section; did you mean 'training'?",
        "  command line: transform: no such section; did you mean 'transforms'?",
        "  command line: model.nam = \"x\": no such key; did you mean 'model.name'?",
        f"  {path}: dataset.path = 3: expected text",
        '  command line: training.max_steps = "lots": expected a whole number',
        f"  {path}: training.batch_size = 0: Input should be greater than or equal to 1",
    ]


def test_overrides_take_yaml_values(write: Any) -> None:
    path = write(f"{DATASET}model: {{name: nvidia/mit-b1, config: {{drop_path_rate: 0.3}}}}\n")
    recipe = load_recipe(
        path,
        [
            "model.name=null",
            "model.config.decoder_hidden_size=64",
            "transforms.crop_size=[96, 128]",
            "training.learning_rate=1e-3",
            "dataset.path=a=b",
            "dataset.labels={0: sky, 1: road}",
            "dataset.labels.1=street",
            "training.max_steps=5",
            "training.max_steps=7",
        ],
    )
    assert recipe.model == ModelConfig(config={"drop_path_rate": 0.3, "decoder_hidden_size": 64})
    assert recipe.transforms.crop_size == (96, 128)
    assert recipe.training.learning_rate == 1e-3
    assert recipe.dataset.path == "a=b"
    assert recipe.dataset.labels == {0: "sky", 1: "street"}
    assert recipe.training.max_steps == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training=3", "'training=3' does not have the form section.key=value"),
        ("training.max_steps", "'training.max_steps' does not have the form section.key=value"),
        ("training..x=3", "'training..x=3' does not have the form section.key=value"),
        ("training.output_dir=*x", "training.output_dir=*x: not valid YAML"),
        ("dataset.path.x=3", 'dataset.path.x=3: dataset.path = "data/x" has no keys'),
        ("training.max_steps=true", "training.max_steps = true: expected a whole number"),
        ("training.max_stps=3", "training.max_stps = 3: no such key; did you mean 'training.max_steps'?"),
    ],
)
def test_wrong_overrides(write: Any, override: str, message: str) -> None:
    assert fault(write(DATASET), override).startswith(f"command line: {message}")


def test_output_folder_is_named_after_the_recipe(write: Any) -> None:
    assert load_recipe(write(DATASET)).training.output_dir == "runs/mine"
    assert load_recipe(write(DATASET), ["training.output_dir=out"]).training.output_dir == "out"
    assert load_recipe("camvid").training.output_dir == "runs/camvid-segformer-b0"


# writing


def test_yaml_holds_every_field_and_comes_back_equal(tmp_path: Path) -> None:
    recipe = Recipe(
        dataset=DatasetConfig(path="on", labels={7: "6e-5", 8: "no", 9: None, 10: "a: b # c"}, val_fraction=0.1 + 0.2),
        transforms=TransformConfig(crop_size=(96, 128)),
        model=ModelConfig(config=TINY | {"drop_path_rate": 1e-7, "hidden_act": "relu"}),
        training=TrainingConfig(output_dir="läufe/1_0", learning_rate=6e-5, mixed_precision="no"),
    )
    recipe.save(tmp_path / "saved.yaml")
    text = (tmp_path / "saved.yaml").read_text(encoding="utf-8")
    assert text == recipe.to_yaml()
    first = (
        f"# Every setting of one run, written by segtune {segtune.__version__}; '# end of the recipe' is the last line"
    )
    assert text.splitlines()[0] == first and text.splitlines()[-1] == "# end of the recipe"
    loaded = load_recipe(tmp_path / "saved.yaml")
    assert loaded == recipe
    assert loaded.to_yaml() == text
    old_style = yaml.safe_load(text)  # YAML 1.1 readers find the same values
    assert {name: set(values) for name, values in old_style.items()} == {
        name: set(values) for name, values in recipe.model_dump().items()
    }
    assert old_style["dataset"]["labels"] == recipe.dataset.labels
    assert old_style["training"]["learning_rate"] == 6e-5


def test_resolved_recipe_repeats_the_run_and_overwrites_nothing() -> None:
    recipe = load_recipe(
        "demo", ["training.output_dir=out", "training.overwrite=true", "training.resume=auto", "hub.push=end"]
    )
    again = resolved(recipe)
    assert again.dataset.split_file == "out/split.json"
    assert (again.training.overwrite, again.training.resume) == (False, "never")
    assert again.hub.push is None
    changed = {"dataset": {"split_file"}, "training": {"overwrite", "resume"}, "hub": {"push"}}
    assert again.model_dump(exclude=changed) == recipe.model_dump(exclude=changed)  # type: ignore[arg-type]


# running


def tiny(earth: Path, output: Path, **dataset: Any) -> Recipe:
    return Recipe(
        dataset=DatasetConfig(path=str(earth), **dataset),
        transforms=TransformConfig(crop_size=64),
        model=ModelConfig(config=TINY),
        training=TrainingConfig(output_dir=str(output), max_steps=2, batch_size=2, device="cpu"),
    )


@pytest.fixture
def few(earth: Path, tmp_path: Path) -> Path:
    """Eight training tiles of the embedded data, without other splits."""
    folder = tmp_path / "few"
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (folder / kind).mkdir(parents=True)
        for path in sorted((earth / kind / "train").glob(f"*.{suffix}"))[:8]:
            (folder / kind / path.name).write_bytes(path.read_bytes())
    (folder / "classes.json").write_bytes((earth / "classes.json").read_bytes())
    return folder


def test_run_trains_and_leaves_a_recipe_that_repeats_it(few: Path, tmp_path: Path) -> None:
    recipe = tiny(few, tmp_path / "run", val_fraction=0.25)
    result = train(recipe)
    assert result["splits"] == ["train", "val"]
    assert result["best"]["step"] == 2
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert (len(split["train"]), len(split["val"])) == (6, 2)
    stored = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert stored == resolved(recipe)
    again = train(load_recipe(tmp_path / "run" / "recipe.yaml", [f"training.output_dir={tmp_path / 'again'}"]))
    assert again["best"] == result["best"]
    assert json.loads((tmp_path / "again" / "split.json").read_text()) == split


def test_counted_class_weights_are_stored_as_numbers_and_repeat_the_run(few: Path, tmp_path: Path) -> None:
    recipe = tiny(few, tmp_path / "run", val_fraction=0.25, check_masks=False)
    loss = LossConfig(cross_entropy=1, dice=0.5, class_weights="median_frequency")
    training = recipe.training.model_copy(update={"loss": loss, "log_every": 1})
    train(recipe.model_copy(update={"training": training}))
    stored = load_recipe(tmp_path / "run" / "recipe.yaml")
    masks = [
        few / "masks" / f"{name}.png" for name in json.loads((tmp_path / "run" / "split.json").read_text())["train"]
    ]
    pixels = np.array([np.bincount(np.asarray(Image.open(mask)).ravel(), minlength=256)[:4] for mask in masks])
    expected = counted_weights("median_frequency", pixels)
    assert stored.training.loss.class_weights == {
        name: pytest.approx(weight, rel=1e-5)
        for name, weight in zip(("water", "vegetation", "bare", "ice"), expected, strict=True)
    }
    train(load_recipe(tmp_path / "run" / "recipe.yaml", [f"training.output_dir={tmp_path / 'again'}"]))
    losses = []
    for run in ("run", "again"):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if "grad_norm" in line])
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_class_weights_of_unknown_classes_are_refused_before_masks_are_read(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segtune.finetune.check_masks", lambda *_: pytest.fail("masks were read"))
    recipe = tiny(few, tmp_path / "run")
    training = recipe.training.model_copy(update={"loss": LossConfig(class_weights={"watr": 2.0})})
    with pytest.raises(UsageError, match="names 'watr', which is no class: did you mean 'water'"):
        train(recipe.model_copy(update={"training": training}))
    assert not (tmp_path / "run").exists()


def test_loss_terms_from_the_command_line(write: Any) -> None:
    path = write(DATASET)
    assert load_recipe(path).training.loss == LossConfig(cross_entropy=1)
    recipe = load_recipe(path, ["training.loss={cross_entropy: 1, dice: 0.5}", "training.loss.class_weights.road=2"])
    assert recipe.training.loss == LossConfig(cross_entropy=1, dice=0.5, class_weights={"road": 2})
    assert fault(path, "training.loss.dise=1") == (
        "command line: training.loss.dise = 1: no such key; did you mean 'training.loss.dice'?"
    )


def test_readme_describes_every_term_and_option_of_the_loss_with_commands_that_load() -> None:
    readme = (recipe_folder() / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Losses")[1].split("\n## ")[0]
    assert [name for name in LossConfig.model_fields if f"`{name}`" not in section] == []
    defaults = dict(re.findall(r"`(\w+)` \(([\d.]+)\)", section))
    assert len(defaults) == 6
    assert {name: float(value) for name, value in defaults.items()} == {
        name: LossConfig.model_fields[name].default for name in defaults
    }
    commands = [shlex.split(line) for line in section.splitlines() if line.startswith("segtune train demo ")]
    assert len(commands) == 3
    for _, _, name, *overrides in commands:
        assert load_recipe(name, overrides).training.loss != LossConfig()


class Pusher:
    """Stands in for `RunPush`: what it was made with and asked to do."""

    def __init__(self, *made_with: Any) -> None:
        self.calls: list[Any] = [made_with]

    def check(self) -> None:
        self.calls.append("check")

    def after_evaluation(self, is_best: bool) -> None:
        self.calls.append(is_best)

    def finish(self) -> str:
        self.calls.append("finish")
        return "https://hub/me/x"

    def wait(self) -> None:
        self.calls.append("wait")


@pytest.fixture
def pushers(monkeypatch: pytest.MonkeyPatch) -> list[Pusher]:
    made: list[Pusher] = []
    monkeypatch.setattr("segtune.finetune.RunPush", lambda *with_: made.append(Pusher(*with_)) or made[-1])
    return made


def pushed(few: Path, output: Path, **training: Any) -> Recipe:
    recipe = tiny(few, output, val_fraction=0.25)
    training = recipe.training.model_dump() | {"max_steps": 4, "eval_every": 1, "learning_rate": 1e-9} | training
    changes = {"hub": HubConfig(push="best", repo="me/x"), "training": TrainingConfig(**training)}
    return recipe.model_copy(update=changes)


def test_run_is_pushed_where_the_recipe_says_so(few: Path, tmp_path: Path, pushers: list[Pusher]) -> None:
    recipe = pushed(few, tmp_path / "run")
    result = train(recipe)
    (pusher,) = pushers
    made_with, check, *evaluations, finish = pusher.calls
    assert made_with == (tmp_path / "run", recipe.hub, None, None)
    assert (check, finish, result["pushed"]) == ("check", "finish", "https://hub/me/x")
    assert len(evaluations) == 4 and evaluations[0] is True and False in evaluations
    assert load_recipe(tmp_path / "run" / "recipe.yaml").hub == HubConfig(push=None, repo="me/x")
    assert "pushed" not in train(tiny(few, tmp_path / "other"))
    assert len(pushers) == 1


def test_run_that_is_to_go_on_waits_for_pushes_only(
    few: Path, tmp_path: Path, pushers: list[Pusher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a run is pushed may change when it goes on."""
    monkeypatch.setattr("segtune.training.trainer.seconds", lambda _: 1e-6)
    result = train(pushed(few, tmp_path / "run", time_limit="1s", eval_every=None))
    assert "stopped" in result and not {"pushed", "report"} & set(result)
    assert not (tmp_path / "run" / "report.html").exists()
    assert pushers[0].calls[1:] == ["check", "wait"]
    again = pushed(few, tmp_path / "run", eval_every=None, resume="auto")
    result = train(again.model_copy(update={"hub": HubConfig(push="end", repo="me/y")}))
    assert result["pushed"] == "https://hub/me/x" and result["step"] == 4


def test_report_is_there_when_the_run_is_pushed(
    few: Path, tmp_path: Path, pushers: list[Pusher], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "run" / "report.html"
    monkeypatch.setattr(Pusher, "finish", lambda _: page.read_text(encoding="utf-8"))
    result = train(pushed(few, tmp_path / "run"))
    assert result["report"] == str(page)
    assert f"mIoU {result['best']['mean_iou']:.3f}</title>" in result["pushed"]  # of the weights that count as the best
    assert "val split, 2 images" in result["pushed"] and "Loss of the training" in result["pushed"]


def test_a_report_that_fails_does_not_fail_the_run(
    few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("segtune.finetune.write_report", fail)
    result = train(tiny(few, tmp_path / "a run", val_fraction=0.25))
    assert result["report"] is None and result["step"] == 2
    assert (tmp_path / "a run" / "best" / "model.safetensors").is_file()
    (warning,) = (record for record in caplog.records if "has no report" in record.message)
    assert "(OSError: no space left on device)" in warning.message
    assert warning.message.endswith(f"segtune report '{tmp_path / 'a run'}' writes it")


def test_run_without_validation_says_so(few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = train(tiny(few, tmp_path / "run", val_fraction=0))
    assert result["splits"] == ["train"]
    assert "no validation split" in caplog.text
    assert (tmp_path / "run" / "best" / "config.json").is_file()
    assert "Not evaluated" in Path(result["report"]).read_text(encoding="utf-8")


def test_a_run_without_a_report(few: Path, tmp_path: Path) -> None:
    recipe = tiny(few, tmp_path / "run", val_fraction=0)
    quiet = recipe.model_copy(update={"training": recipe.training.model_copy(update={"report": False})})
    assert "report" not in train(quiet) and not (tmp_path / "run" / "report.html").exists()


def test_masks_are_checked_before_anything_is_built(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = sorted((few / "masks").glob("*.png"))[3]
    mask = Image.new("L", (180, 180))
    mask.paste(42, (0, 0, 17, 1))
    mask.save(broken)
    monkeypatch.setattr("segtune.finetune.build_model", lambda *_, **__: pytest.fail("a model was built"))
    with pytest.raises(DataError) as caught:
        train(tiny(few, tmp_path / "run"))
    assert all(part in str(caught.value) for part in (broken.name, "42", "17"))
    assert not (tmp_path / "run").exists()


def test_run_needs_a_training_split(few: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (few / kind).rename(few / "moved")
        (few / kind).mkdir()
        (few / "moved").rename(few / kind / "test")
    with pytest.raises(UsageError, match="no training images, only test"):
        train(tiny(few, tmp_path / "run"))


def test_a_file_that_was_cut_is_told_from_one_with_fewer_settings(write: Any) -> None:
    text = load_recipe(write(DATASET)).to_yaml()
    lines = text.splitlines(keepends=True)
    assert load_recipe(write("".join(lines[1:-1]))) == load_recipe(write(text))  # somebody's own
    for count in range(1, len(lines)):
        with pytest.raises(UsageError, match=r"mine\.yaml"):
            load_recipe(write("".join(lines[:count])))
    with pytest.raises(UsageError, match=r"mine\.yaml is cut off: its last line, '# end of the recipe', is missing"):
        load_recipe(write(text[: text.index("evaluation:")]))


def test_every_setting_stays_on_resume_but_those_that_say_they_may_change(tmp_path: Path) -> None:
    recipe = Recipe(
        dataset=DatasetConfig(path="x", unlabelled="z"),
        model=ModelConfig(name="user/name", lora=LoraConfig()),
        training=TrainingConfig(
            output_dir=str(tmp_path),
            resume="auto",
            distill=DistillConfig(teacher="y"),
            semi=SemiConfig(),
            ema_decay=0.9,
        ),
    )
    taken = set()
    for keys, field in walk_fields(Recipe):
        if section_of(field.annotation):
            continue
        stored = yaml.safe_load(recipe.to_yaml())
        functools.reduce(dict.__getitem__, keys[:-1], stored)[keys[-1]] = "another"
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
        key = ".".join(keys)
        if may_change_on_resume(field):
            taken.add(key)
            refuse_another_run(recipe)
        else:
            with pytest.raises(UsageError, match=rf"(?m)^  {re.escape(key)}: \"another\" then, "):
                refuse_another_run(recipe)
    of_training = "output_dir batch_size accumulation_steps effective_batch_size num_workers gradient_checkpointing "
    of_training += "early_stopping_patience overlays report trackers save_every keep_last log_every device time_limit "
    of_training += "resume overwrite"
    assert taken == {
        *(f"training.{name}" for name in of_training.split()),
        *(f"hub.{name}" for name in HubConfig.model_fields),
        *(f"search.{name}" for name in SearchConfig.model_fields),
        *("dataset.check_masks", "dataset.split_file", "evaluation.batch_size", "training.distill.cache"),
    }


def test_a_run_goes_on_with_its_own_settings_only(few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny(few, tmp_path / "run", val_fraction=0.25)
    recipe = recipe.model_copy(update={"model": ModelConfig(config=TINY | {"depths": (1, 1, 1, 1)})})  # or a list

    def changed(**training: Any) -> Recipe:
        return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})

    train(changed(save_every=1))
    final = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    train(changed(resume="auto", save_every=2, num_workers=1, log_every=1, overlays=0))  # nothing that counts
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == final
    with pytest.raises(UsageError) as caught:
        train(changed(resume="auto", learning_rate=0.5, max_steps=3))
    assert str(caught.value).splitlines()[:3] == [
        f"{tmp_path / 'run'} cannot go on with other settings than it began with:",
        "  training.learning_rate: 6e-05 then, 0.5 now",
        "  training.max_steps: 2 then, 3 now",
    ]
    assert load_recipe(tmp_path / "run" / "recipe.yaml").training.max_steps == 2

    state = tmp_path / "run" / "checkpoints" / "step-000001"
    assert load_recipe(state / "recipe.yaml").training.max_steps == 2
    new = {"resume": str(state), "output_dir": str(tmp_path / "new"), "max_steps": 3}
    assert train(changed(**new))["step"] == 3
    assert f"a new run from {state} with other settings: training.max_steps: 2 then, 3 now" in caplog.text


@pytest.mark.parametrize("override", ["dataset.unlabelled=pictures", "training.semi={}"])
def test_unlabelled_pictures_and_what_learns_from_them_go_together(write: Any, override: str) -> None:
    recipe = write(DATASET)
    with pytest.raises(UsageError, match=r"dataset\.unlabelled and training\.semi go together"):
        load_recipe(recipe, [override, "training.ema_decay=0.9"])
    both = ["dataset.unlabelled=pictures", "training.semi={}"]
    with pytest.raises(UsageError, match="set ema_decay"):
        load_recipe(recipe, both)
    assert load_recipe(recipe, [*both, "training.ema_decay=0.9"]).training.semi is not None


def test_sections_that_do_not_go_together_are_told_in_words() -> None:
    with pytest.raises(UsageError, match=r"demo.yaml with the command line: dataset.unlabelled and training.semi"):
        load_recipe("demo", ["dataset.unlabelled=more"])
