"""From a training to the Hub and back, each step in a fresh process, against a server on loopback."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from support import examples
from support.minihub import Hub, environment, serve

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PHOTO = str(min((ROOT / "src" / "segtune" / "data" / "earth" / "images" / "test").iterdir()))
REPO = "tester/tiles"
TINY = [
    "training.batch_size=2",
    "training.eval_every=null",
    "training.device=cpu",
    examples.TINY,
]
PREPARE = f"""
import atexit, gc
gc.disable()  # imports leave half a million objects: to look for garbage among them takes two seconds
atexit.register(gc.freeze)
import sys
import numpy as np
import torch
from PIL import Image

photo = Image.open({PHOTO!r}).convert("RGB")


def logits_of(model, processor):
    with torch.no_grad():
        return model.eval()(**processor(photo, return_tensors="pt")).logits.numpy()


def masks_of(segment):
    return {{found["label"]: np.asarray(found["mask"]) for found in segment(photo)}}


def joined(masks, names):
    return sum((masks[name] > 0) * number for number, name in enumerate(names) if name in masks)
"""
WITHOUT_SEGTUNE = 'import sys\nsys.modules["segtune"] = None  # not importable\n'


class Place(NamedTuple):
    """A folder to work in, and the Hub that processes there know."""

    folder: Path
    hub: Hub
    url: str

    def run(self, *words: str, code: int = 0, token: str = "hf_write", home: str = "home", **options: Any) -> Any:
        """Run Python with these arguments in a fresh process."""
        variables = {**os.environ, **environment(self.url, self.folder / home, token), "OMP_NUM_THREADS": "1"}
        variables["PYTHONPATH"] = str(ROOT / "src")
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
            **options,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def segtune(self, *words: str, **options: Any) -> Any:
        return self.run("-m", "segtune", *words, **options)

    def script(self, text: str, **options: Any) -> Any:
        """Run a script; what it stores in `results` comes back."""
        lines = [PREPARE, "results = {}", textwrap.dedent(text), 'np.savez("results.npz", **results)']
        if options.pop("without_segtune", False):
            lines.insert(0, WITHOUT_SEGTUNE)
        self.run("-c", "\n".join(lines), **options)
        with np.load(self.folder / "results.npz") as results:
            return dict(results)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Ten steps of the demo, pushed with the network's code."""
    folder = tmp_path_factory.mktemp("round-trip")
    with serve() as (hub, url):
        here = Place(folder, hub, url)
        here.segtune("train", "demo", "training.max_steps=10", "training.output_dir=run", *TINY)
        done = here.segtune("push", "run", "--repo", REPO, "--with-code", "--license", "apache-2.0", "--private")
        assert done.stdout == f"pushed run to {url}/{REPO}\n"
        yield here


@pytest.fixture(scope="module")
def local(place: Place) -> Any:
    """What the run's own best/ answers."""
    return place.script("""
        import segtune
        model = segtune.SegformerForSemanticSegmentation.from_pretrained("run/best")
        processor = segtune.SegformerImageProcessor.from_pretrained("run/best")
        results["logits"] = logits_of(model, processor)
        results["mask"] = segtune.predict("run/best", photo)
    """)


def test_segtune_reads_what_was_pushed(place: Place, local: Any) -> None:
    """With everything that `from_pretrained` takes: a revision, a token, another cache, no network."""
    found = place.script(
        f"""
        import segtune
        options = dict(revision="main", token="hf_write", cache_dir="elsewhere")
        for only_local in (False, True):
            options["local_files_only"] = only_local
            model = segtune.SegformerForSemanticSegmentation.from_pretrained("{REPO}", **options)
            processor = segtune.SegformerImageProcessor.from_pretrained("{REPO}", **options)
            label_map = segtune.LabelMap.from_pretrained("{REPO}", **options)
        results["logits"] = logits_of(model, processor)
        results["names"], results["colors"] = label_map.names, label_map.colors

        from transformers import pipeline
        segment = pipeline("image-segmentation", model=model, image_processor=processor)
        masks = masks_of(segment)
        results["mask"] = joined(masks, label_map.names)
        """,
        token="",
    )
    assert np.array_equal(found["logits"], local["logits"])
    assert np.array_equal(found["mask"], local["mask"])
    assert found["names"].tolist() == ["water", "vegetation", "bare", "ice"]
    assert found["colors"].tolist()[0] == [38, 99, 166]


def test_plain_transformers_reads_what_was_pushed(place: Place, local: Any) -> None:
    found = place.script(
        f"""
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
        model = AutoModelForSemanticSegmentation.from_pretrained("{REPO}")
        processor = AutoImageProcessor.from_pretrained("{REPO}")
        assert type(model).__module__.startswith("transformers.")
        results["logits"] = logits_of(model, processor)
        segment = pipeline(model="{REPO}")  # the task and the library are the card's
        assert segment.task == "image-segmentation" and type(segment.model).__module__.startswith("transformers.")
        masks = masks_of(segment)
        results["mask"] = joined(masks, [model.config.id2label[i] for i in range(4)])
        """,
        without_segtune=True,
    )
    assert np.abs(found["logits"] - local["logits"]).max() <= 1e-5
    assert np.array_equal(found["mask"], local["mask"])


def test_code_of_the_repository_is_our_network(place: Place, local: Any) -> None:
    found = place.script(
        f"""
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
        options = dict(trust_remote_code=True)
        model = AutoModelForSemanticSegmentation.from_pretrained("{REPO}", **options)
        processor = AutoImageProcessor.from_pretrained("{REPO}", **options)
        for one in (model, processor, AutoConfig.from_pretrained("{REPO}", **options)):
            assert type(one).__module__.startswith("transformers_modules.tester.tiles."), type(one)
        assert any(name.endswith(".fused_decode_head") for name in sys.modules)  # our decode head came along
        results["logits"] = logits_of(model, processor)
        loss = model(torch.rand(1, 3, 64, 64), labels=torch.zeros(1, 64, 64, dtype=torch.long)).loss
        loss.backward()
        results["gradient"] = model.segformer.encoder.patch_embeddings[0].proj.weight.grad.abs().sum()
        assert type(pipeline("image-segmentation", model="{REPO}", **options).model) is type(model)
        """,
        without_segtune=True,
    )
    assert np.array_equal(found["logits"], local["logits"])
    assert found["gradient"] > 0


def snippets(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)


def test_snippets_of_the_card_run(place: Place, local: Any) -> None:
    card = place.hub.read(REPO, "README.md").decode()
    with_segtune, *alone = snippets(card)
    assert len(alone) == 3 and "trust_remote_code" in alone[2]
    found = place.script(f'photo.save("photo.jpg", quality=100)\n{with_segtune}\nresults["mask"] = mask')
    assert found["mask"].shape == (180, 180) and (place.folder / "overlay.png").is_file()
    text = "\n".join(alone) + '\nresults["mask"] = mask.numpy()\nresults["labels"] = sorted(masks)'
    again = place.script(text, without_segtune=True)
    assert np.mean(again["mask"] == found["mask"]) > 0.999
    assert set(again["labels"]) <= {"water", "vegetation", "bare", "ice"}


def test_card_is_whole(place: Place) -> None:
    card = place.hub.read(REPO, "README.md").decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["license"] == "apache-2.0" and metadata["pipeline_tag"] == "image-segmentation"
    assert metadata["widget"][0]["src"] == "example.jpg"
    results = metadata["model-index"][0]["results"][0]
    assert results["metrics"][0]["type"] == "mean_iou" and 0 < results["metrics"][0]["value"] < 1
    assert "example.jpg" in place.hub.repo(REPO).at().files
    for part in (
        "| 0 | water | `#2663a6` | 0 |",
        "| train | 94 |",
        "max_steps: 10",
        "| torch | ",
        "not for commercial",
    ):
        assert (part in card) == (part != "not for commercial"), part
    assert "$" not in card


def test_pushed_recipe_repeats_the_run_and_pushes_nothing(place: Place) -> None:
    (place.folder / "again").mkdir()
    for name in ("recipe.yaml", "split.json"):
        (place.folder / "again" / name).write_bytes(place.hub.read(REPO, name))
    commits = len(place.hub.repo(REPO).commits)
    place.segtune(
        "train", "again/recipe.yaml", "dataset.split_file=again/split.json", "training.output_dir=repeated"
    )  # fmt: skip
    first, second = ((place.folder / run / "best" / "model.safetensors").read_bytes() for run in ("run", "repeated"))
    assert first == second
    assert len(place.hub.repo(REPO).commits) == commits


# --- the command line on what was pushed -----------------------------------------------------------------------------


def test_evaluate_and_predict_take_an_id_and_a_revision(place: Place, local: Any) -> None:
    repo = place.hub.repo(REPO)
    repo.tags["v1"] = repo.at().sha
    repo.add_commit(
        "main", {"config.json": ("regular", b"{}"), "preprocessor_config.json": ("regular", b"{}")}, [], "bad"
    )
    done = place.segtune("evaluate", f"{REPO}@v1", "demo", "--split", "val", "--json", home="third")
    lines = [json.loads(line) for line in (place.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    (trained,) = [line["mean_iou"] for line in lines if "mean_iou" in line]
    assert json.loads(done.stdout)["mean_iou"] == pytest.approx(trained, abs=1e-9)
    place.segtune("predict", f"{REPO}@{repo.tags['v1']}", PHOTO, "--output", "masks", home="third")
    repo.branches["main"] = repo.tags["v1"]
    assert (place.folder / "masks").is_dir()


def test_checkpoints_that_the_hub_does_not_hand_out(place: Place) -> None:
    """The commands themselves, one after the other, in a process that imports the heavy libraries once."""
    gone = "the Hub has no such repository, or does not show it to this token (404)"
    cases = [
        ("tester/gone", "hf_write", gone),
        (f"{REPO}@v9", "hf_write", "the Hub has no such branch, tag or commit (404)"),
        (REPO, "hf_nonsense", "the Hub does not accept the token (401)"),
        (REPO, "hf_nvidia", gone),
    ]
    done = place.run(
        "-c",
        f"""
import os
from segtune.cli.main import main
for name, token, _ in {cases!r}:
    os.environ["HF_TOKEN"] = token
    try:
        main(["predict", name, {PHOTO!r}, "--output", "none"])
    except SystemExit as left:
        print(left.code)
""",
        home="fresh",
    )
    assert done.stdout.split() == ["1"] * 4
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for (name, _, message), line in zip(cases, errors, strict=True):
        assert line.startswith(f"error: checkpoint {name} cannot be fetched: {message}")
    assert "Traceback" not in done.stderr and not (place.folder / "none").exists()


def test_no_space_for_the_cache(place: Place) -> None:
    """The process may write no file of more than 64 kB, which the weights exceed: a quota, as good as a full disk."""

    def small_quota() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))

    done = place.segtune("predict", REPO, PHOTO, "--output", "none", code=1, home="full", preexec_fn=small_quota)
    assert f"error: checkpoint {REPO} cannot be fetched: no space is left for it" in done.stderr
    assert "HF_HOME names another place" in done.stderr


def test_wrong_token_leaves_the_run_as_it_is(place: Place) -> None:
    before = {path: path.read_bytes() for path in (place.folder / "run").rglob("*") if path.is_file()}
    done = place.segtune("push", "run", "--repo", REPO, code=1, token="hf_nonsense")
    assert done.stdout == ""
    warning = f"WARNING segtune.hub.push: the card of {REPO} states no licence: hub.license or --license states one\n"
    assert done.stderr == warning + (
        f"error: run was not pushed to {REPO}: the Hub does not accept the token (401): log in with `hf auth login`, "
        f"or set HF_TOKEN. The run is intact; to go on: segtune push run --repo {REPO}\n"
    )
    assert {path: path.read_bytes() for path in (place.folder / "run").rglob("*") if path.is_file()} == before


def test_training_pushes_while_it_goes_on(place: Place) -> None:
    settings = ["training.max_steps=4", "hub.push=every_eval", "hub.repo=tester/live", *TINY, "training.eval_every=2"]
    refused = place.segtune(
        "train", "demo", *settings, "training.output_dir=live", code=1, token="hf_nonsense"
    )  # fmt: skip
    assert "error: the run cannot be pushed to tester/live: the Hub does not accept the token" in refused.stderr
    assert not (place.folder / "live").exists()
    done = place.segtune("train", "demo", *settings, "training.output_dir=live")
    assert f"pushed to {place.url}/tester/live\n" in done.stdout
    repo = place.hub.repo("tester/live")
    assert {commit.title for commit in repo.commits.values()} == {"initial commit", "Push live with segtune"}
    assert len(repo.commits) >= 3
    for name in ("best/model.safetensors", "metrics.jsonl", "evaluation-val.npz"):
        assert place.hub.read("tester/live", Path(name).name) == (place.folder / "live" / name).read_bytes()
    card = place.hub.read("tester/live", "README.md").decode()
    assert "BCa bootstrap of 10000 resamples" in card and "mean IoU [0." in card


def test_model_pushes_itself(place: Place, local: Any) -> None:
    found = place.script("""
        import segtune
        model = segtune.SegformerForSemanticSegmentation.from_pretrained("run/best")
        model.push_to_hub("tester/plain", private=True)
        segtune.SegformerImageProcessor.from_pretrained("run/best").push_to_hub("tester/plain")
        results["mask"] = segtune.predict("tester/plain", photo)
    """)
    assert np.array_equal(found["mask"], local["mask"])
    assert place.hub.repo("tester/plain").private


def test_pushed_data_is_streamed_by_datasets(place: Place) -> None:
    """What `segtune data convert --to hub` calls."""
    found = place.script("""
        from datasets import Dataset, Image as ImageFeature, load_dataset
        from segtune.hub.push import push_folder

        mask = Image.fromarray(np.arange(180 * 180, dtype=np.uint8).reshape(180, 180) % 4)
        rows = Dataset.from_dict({"image": [photo] * 3, "mask": [mask] * 3})
        rows = rows.cast_column("image", ImageFeature()).cast_column("mask", ImageFeature())
        rows.to_parquet("data/data/train-0.parquet")
        open("data/README.md", "w").write("---\\nlicense: cc0-1.0\\n---\\n")
        push_folder("data", "tester/data", "dataset", private=True, message="Add the data")
        streamed = list(load_dataset("tester/data", split="train", streaming=True))
        again = load_dataset("tester/data", split="train")
        results["rows"] = [len(streamed), len(again)]
        results["equal"] = all(np.array_equal(row["mask"], mask) for row in (*streamed, *again))
    """)
    assert found["rows"].tolist() == [3, 3] and found["equal"]


# --- published checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(place: Place) -> Place:
    """`nvidia/mit-b0` as transformers pushes it, on another branch as pytorch_model.bin, and a harmful one."""
    place.run(
        "-c",
        textwrap.dedent("""
            import os, torch, transformers
            from huggingface_hub import HfApi
            from safetensors.torch import load_file

            torch.manual_seed(0)
            model = transformers.SegformerForImageClassification(transformers.SegformerConfig(num_labels=1000))
            model.push_to_hub("nvidia/mit-b0")
            api = HfApi()
            card = b"---\\nlicense: other\\ntags: [vision]\\ndatasets: [imagenet_1k]\\n---\\n# SegFormer encoder\\n"
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="nvidia/mit-b0")
            model.save_pretrained("mit")
            tensors = load_file("mit/model.safetensors")
            torch.save(tensors, "pytorch_model.bin")

            class Harmful:
                def __reduce__(self):
                    return os.system, ("touch harmed",)

            torch.save({**tensors, "hook": Harmful()}, "harmful.bin")
            for branch, file in (("bin", "pytorch_model.bin"), ("harmful", "harmful.bin")):
                api.create_branch("nvidia/mit-b0", branch=branch)
                api.delete_file("model.safetensors", "nvidia/mit-b0", revision=branch)
                api.upload_file(
                    path_or_fileobj=file, path_in_repo="pytorch_model.bin", repo_id="nvidia/mit-b0", revision=branch
                )
        """),
        token="hf_nvidia",
    )
    files = place.hub.repo("nvidia/mit-b0").at("bin").files
    assert "pytorch_model.bin" in files and "model.safetensors" not in files
    return place


SHORT = ["training.max_steps=5", *TINY[:-1]]


def test_training_starts_from_both_kinds_of_files_and_the_card_says_so(published: Place) -> None:
    for name in ("mit-b0", "mit-b0@bin"):
        done = published.segtune("train", "demo", f"model.name=nvidia/{name}", f"training.output_dir={name}", *SHORT)
        assert "loaded encoder (192 tensors); starts fresh: decode_head (16 tensors); not used: class" in done.stderr
    weights = [published.folder / name / "best" / "model.safetensors" for name in ("mit-b0", "mit-b0@bin")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    done = published.segtune("push", "mit-b0@bin", "--repo", "tester/fine", "--private")
    assert "tester/fine is not for commercial use" in done.stderr
    card = published.hub.read("tester/fine", "README.md").decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["base_model"] == "nvidia/mit-b0"
    assert (metadata["license"], metadata["license_name"]) == ("other", "nvidia-source-code-license")
    assert "> **Not for commercial use:**" in card and "Fine-tuned from nvidia/mit-b0@bin on" in card
    refused = published.segtune("push", "mit-b0", "--repo", "tester/fine", "--license", "apache-2.0", code=2)
    assert "a fine-tuned model inherits that" in refused.stderr


def test_harmful_pickle_is_refused(published: Place) -> None:
    done = published.segtune(
        "train", "demo", "model.name=nvidia/mit-b0@harmful", "training.output_dir=runs/no", *SHORT, code=1
    )  # fmt: skip
    assert "its pytorch_model.bin is no pure file of tensors, it asks for" in done.stderr
    assert "refused: ask for a model.safetensors" in done.stderr
    assert not (published.folder / "harmed").exists() and not (published.folder / "runs" / "no").exists()
