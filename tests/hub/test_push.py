"""Pushing to a server on loopback, within this process; tests/contract/test_round_trip.py has fresh ones."""

from __future__ import annotations

import errno
import html
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from segtune.errors import UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.hub import model_card, retries, stage
from segtune.hub import push as hub
from segtune.hub.config import HubConfig
from segtune.hub.push import PushError, RunPush, push_folder, push_run
from segtune.labels.label_map import LabelMap
from support.minihub import Fault, Hub, Repo, serve

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub, of httpx

CONFIG = {"model_type": "segformer", "num_channels": 3, **LabelMap.from_names(["sky", "road"]).config_fields()}
FILES = {
    ".gitattributes", "README.md", "config.json", "metrics.jsonl", "model.safetensors", "preprocessor_config.json",
    "recipe.yaml", "split.json",
}  # fmt: skip


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps; what would have been slept."""
    made: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", made.append)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "roads"
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "config.json").write_text(json.dumps(CONFIG))
    (folder / "best" / "preprocessor_config.json").write_text("{}")
    save_file({"weight": torch.ones(4)}, folder / "best" / "model.safetensors")
    recipe = {"dataset": {"path": "nowhere"}, "model": {"name": None}, "hub": {"repo": "tester/roads", "push": None}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "split.json").write_text('{"train": ["a"]}')
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder


def better(run: Path, value: float) -> None:
    """As a training replaces best/: all at once."""
    shutil.copytree(run / "best", run / "new")
    (run / "new" / "model.safetensors").unlink()
    save_file({"weight": torch.full((4,), value)}, run / "new" / "model.safetensors")
    shutil.rmtree(run / "best")
    (run / "new").rename(run / "best")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_push_makes_the_repository_and_one_commit(on_hub: Hub, run: Path) -> None:
    before = contents(run)
    url = push_run(run, license="apache-2.0", private=True)
    repo = on_hub.repo("tester/roads")
    assert url.endswith("/tester/roads") and repo.private
    assert [commit.title for commit in repo.commits.values()] == ["initial commit", "Push roads with segtune"]
    assert set(repo.at().files) == FILES
    assert on_hub.read("tester/roads", "model.safetensors") == (run / "best" / "model.safetensors").read_bytes()
    assert "license: apache-2.0" in on_hub.read("tester/roads", "README.md").decode()
    assert contents(run) == before


def test_second_push_sends_only_what_is_new(on_hub: Hub, run: Path) -> None:
    (run / "report.html").write_text("page")
    push_run(run)
    uploads = len(on_hub.requests("PUT", "/_lfs/"))
    push_run(run)
    assert len(on_hub.repo("tester/roads").commits) == 2
    (run / "report.html").unlink()
    (run / "metrics.jsonl").write_text('{"step": 2}\n')
    push_run(run)
    assert len(on_hub.repo("tester/roads").commits) == 3
    assert len(on_hub.requests("PUT", "/_lfs/")) == uploads == 1
    assert set(on_hub.repo("tester/roads").at().files) == FILES
    assert on_hub.read("tester/roads", "metrics.jsonl") == b'{"step": 2}\n'


def test_no_local_path_is_sent(on_hub: Hub, run: Path, tmp_path: Path) -> None:
    """Neither in the recipe, nor in the report, the evaluations and the card; and the run itself stays as it is."""
    secret = tmp_path / "anna"
    recipe = {
        "dataset": {"path": f"{secret}/<photos>", "split_file": f"../{secret.name}/runs/split.json"},
        "model": {"name": None},
        "training": {"output_dir": f"{run}"},
        "hub": {"repo": "tester/roads", "push": None},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pre = html.escape((run / "recipe.yaml").read_text())
    (run / "report.html").write_text(f"<p>a</p><summary>recipe.yaml</summary><pre>{pre}</pre><p>b</p>")
    evaluation = Evaluation(["sky", "road"])
    evaluation.add("one", np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    evaluation.about = {
        "checkpoint": f"{run}/best",
        "recipe": f"{secret}/mine.yaml",
        "split": "test",
        "protocol": "whole",
    }
    evaluation.save(run / "evaluation-test.npz")
    before = contents(run)
    push_run(run)
    sent = {name: on_hub.read("tester/roads", name) for name in on_hub.repo("tester/roads").at().files}
    assert {"report.html", "evaluation-test.npz", "recipe.yaml", "README.md"} <= sent.keys()
    assert [name for name, content in sent.items() if b"anna" in content or str(tmp_path).encode() in content] == []
    assert yaml.safe_load(sent["recipe.yaml"])["dataset"] == {"path": "<photos>", "split_file": "split.json"}
    assert b"path: &lt;photos&gt;\n" in sent["report.html"] and sent["report.html"].endswith(b"</pre><p>b</p>")
    (tmp_path / "got.npz").write_bytes(sent["evaluation-test.npz"])
    got = Evaluation.load(tmp_path / "got.npz")
    assert got.about == evaluation.about | {"checkpoint": "roads/best", "recipe": "mine.yaml"}
    assert got.scores() == evaluation.scores()
    assert contents(run) == before


def test_files_of_the_owner_stay(on_hub: Hub, run: Path) -> None:
    push_run(run)
    on_hub.repo("tester/roads").add_commit("main", {"handler.py": ("regular", b"mine")}, [], "mine")
    (run / "metrics.jsonl").write_text('{"step": 2}\n')
    push_run(run)
    assert on_hub.read("tester/roads", "handler.py") == b"mine"


def test_name_of_the_folder_is_the_default(on_hub: Hub, run: Path) -> None:
    assert push_run(run, repo=None).endswith("/tester/roads")
    (run / "recipe.yaml").write_text("dataset: {path: x}\nmodel: {name: null}\n")  # of a version without `hub`
    assert push_run(run / "best").endswith("/tester/roads")


def test_branch_is_made_and_main_left_alone(on_hub: Hub, run: Path) -> None:
    for _ in range(2):
        push_run(run, branch="v1")
    repo = on_hub.repo("tester/roads")
    assert "model.safetensors" in repo.at("v1").files and "model.safetensors" not in repo.at("main").files


def test_pull_request_to_a_repository_of_ours(on_hub: Hub, run: Path) -> None:
    url = push_run(run, create_pr=True)
    repo = on_hub.repo("tester/roads")
    assert url.endswith("/tester/roads/discussions/1")
    assert "model.safetensors" in repo.at("refs/pr/1").files and "model.safetensors" not in repo.at("main").files


def test_xet_is_the_way_of_large_files_where_it_is_there(
    run: Path, tmp_path: Path, on_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    with serve(xet_folder=tmp_path / "xet") as (other, url):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
        push_run(run)
        assert other.requests("GET", "xet-write-token") and not other.requests("PUT", "/_lfs/")
        assert other.read("tester/roads", "model.safetensors") == (run / "best" / "model.safetensors").read_bytes()


# --- licences --------------------------------------------------------------------------------------------------------


def start_from(run: Path, name: str) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"model": {"name": name}}))


def test_license_is_read_from_the_card_of_the_base(on_hub: Hub, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = Repo("models", "you/base", private=False)
    base.add_commit("main", {"README.md": ("regular", b"---\nlicense: cc-by-nc-4.0\n---\n")}, [], "card")
    on_hub.repos["models", "you/base"] = base
    start_from(run, "you/base")
    push_run(run)
    card = on_hub.read("tester/roads", "README.md").decode()
    assert "license: cc-by-nc-4.0" in card and "base_model: you/base" in card and "**Not for commercial use:**" in card
    assert "tester/roads is not for commercial use: cc-by-nc-4.0" in caplog.text


def test_license_against_the_inherited_one_is_refused_before_anything_is_made(on_hub: Hub, run: Path) -> None:
    start_from(run, "nvidia/mit-b0")
    with pytest.raises(UsageError, match=r"license apache-2\.0: the weights started from nvidia/mit-b0"):
        push_run(run, license="apache-2.0")
    assert on_hub.repos == {}


def test_card_that_cannot_be_read_now_is_not_taken_for_none(on_hub: Hub, run: Path, waits: list[float]) -> None:
    start_from(run, "you/base")
    on_hub.faults = [Fault("HEAD", "/you/base/", 503, 999)]
    with pytest.raises(PushError, match=r"no answer from the Hub|the Hub answers 503"):
        push_run(run)
    assert on_hub.repos == {}


def test_base_without_a_card_leaves_the_choice_to_the_owner(
    on_hub: Hub, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    on_hub.repos["models", "you/base"] = Repo("models", "you/base", private=False)
    start_from(run, "you/base")
    on_hub.faults = [Fault("POST", "/api/repos/create", 403)]
    with pytest.raises(PushError):
        push_run(run)
    assert on_hub.repos.keys() == {("models", "you/base")}  # it is told before anything is sent
    assert "the card of tester/roads states no licence: hub.license or --license states one" in caplog.text
    start_from(run, "gone/base")
    push_run(run, license="mit")
    assert "license: mit" in on_hub.read("tester/roads", "README.md").decode()


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_nonsense", "does not accept the token"), ("hf_read", "needs the role write"), ("hf_nvidia", "must be yours")],
)
def test_token_that_may_not_write(
    on_hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float], token: str, message: str
) -> None:
    before = contents(run)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PushError, match=f"^.*{message}.*The run is intact; to go on: segtune push .*$") as caught:
        push_run(run)
    assert caught.value.exit_code == 1
    assert waits == [] and on_hub.repos == {} and contents(run) == before


def test_lost_connection_is_tried_again(on_hub: Hub, run: Path, waits: list[float]) -> None:
    on_hub.faults = [Fault("POST", "/repos/create", None), Fault("POST", "/commit/", None, 2)]
    push_run(run)
    assert set(on_hub.repo("tester/roads").at().files) == FILES
    assert waits == [2, 2, 4]


def test_push_that_broke_off_goes_on_where_it_was(on_hub: Hub, run: Path, waits: list[float]) -> None:
    on_hub.faults = [Fault("POST", "/commit/", None, 999)]
    with pytest.raises(PushError) as caught:
        push_run(run, private=True, branch="v 1", with_code=True)
    command = str(caught.value).rpartition("to go on: ")[2]
    assert command == f"segtune push {run} --repo tester/roads --branch 'v 1' --private --with-code"
    assert waits == list(retries.WAITS)
    assert "model.safetensors" not in on_hub.repo("tester/roads").at().files
    on_hub.faults = []
    push_run(run, private=True, branch="v 1", with_code=True)
    assert "model.safetensors" in on_hub.repo("tester/roads").at("v 1").files
    assert len(on_hub.requests("PUT", "/_lfs/")) == 1  # the weights were there already


def test_rate_limit_is_waited_for(on_hub: Hub, run: Path, waits: list[float]) -> None:
    on_hub.faults = [Fault("POST", "/commit/", 429, headers={"Retry-After": "41"})]
    push_run(run)
    assert waits == [41]


def test_repository_that_is_gone_is_not_waited_for(
    on_hub: Hub, run: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe_and_remove(*arguments: Any) -> Any:
        on_hub.repos.clear()
        return model_card.describe_run(*arguments)

    monkeypatch.setattr(hub, "describe_run", describe_and_remove)
    with pytest.raises(PushError, match="the Hub has no such repository"):
        push_run(run)
    assert waits == []


def test_no_space_for_what_is_pushed(
    on_hub: Hub, run: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage.shutil, "copyfile", full)
    before = contents(run)
    with pytest.raises(PushError, match=r"was not pushed: its files cannot be put together .*No space left"):
        push_run(run)
    assert contents(run) == before


def test_folder_of_data_is_pushed_and_goes_on(on_hub: Hub, tmp_path: Path, waits: list[float]) -> None:
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    (folder / "README.md").write_text("---\npretty_name: Mine\n---\n")
    (folder / "train" / "0.parquet").write_bytes(b"rows" * 100)
    on_hub.faults = [Fault("POST", "/commit/", None, 999)]
    with pytest.raises(PushError, match=r"was not pushed to tester/data: .*give the same command again"):
        push_folder(folder, "tester/data", "dataset", message="Add the data")
    on_hub.faults = []
    assert push_folder(folder, "tester/data", "dataset", message="Add the data").endswith("/datasets/tester/data")
    assert set(on_hub.repo("tester/data", "datasets").at().files) == {
        ".gitattributes", "README.md", "train/0.parquet"
    }  # fmt: skip
    assert len(on_hub.requests("PUT", "/_lfs/")) == 1


# --- while a run goes on ---------------------------------------------------------------------------------------------


def pushed_value(on_hub: Hub) -> float:
    from safetensors.torch import load

    return float(load(on_hub.read("tester/roads", "model.safetensors"))["weight"][0])


@pytest.mark.parametrize(("when", "commits"), [("end", 1), ("best", 2), ("every_eval", 3)])
def test_run_is_pushed_when_the_recipe_says(on_hub: Hub, run: Path, when: Any, commits: int) -> None:
    push = RunPush(run, HubConfig(push=when, repo="tester/roads"), base=None)
    push.check()
    for step, is_best in ((1, True), (2, False)):
        if is_best:
            better(run, 2.0)
        (run / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
        push.after_evaluation(is_best)
        push.wait()
    (run / "metrics.jsonl").write_text('{"ended": "done"}\n')
    assert str(push.finish()).endswith("/tester/roads")
    assert len(on_hub.repo("tester/roads").commits) == 1 + commits
    assert pushed_value(on_hub) == 2.0
    assert on_hub.read("tester/roads", "metrics.jsonl") == b'{"ended": "done"}\n'
    assert not list(run.glob(".push-*"))


def test_example_is_looked_for_once(on_hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That may mean to look through all of the data."""
    looked = []
    monkeypatch.setattr(hub, "example_picture", lambda staged: looked.append(staged) or b"a picture")
    push = RunPush(run, HubConfig(push="every_eval", repo="tester/roads"), base=None)
    for _ in range(2):
        push.after_evaluation(False)
        push.wait()
    push.finish()
    assert len(looked) == 1
    assert on_hub.read("tester/roads", "example.jpg") == b"a picture"
    RunPush(run, HubConfig(push="end", repo="tester/roads", pictures=False), base=None).finish()
    assert len(looked) == 1 and "example.jpg" not in on_hub.repo("tester/roads").at().files


def test_failing_pushes_warn_and_never_raise(
    on_hub: Hub, run: Path, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    on_hub.faults = [Fault("POST", "/commit/", 500, 999)]
    push = RunPush(run, HubConfig(push="best", repo="tester/roads"), base=None)
    push.after_evaluation(True)
    push.wait()
    assert push.finish() is None
    warnings = [record.getMessage() for record in caplog.records if record.name == "segtune.hub.push"]
    assert len(warnings) == 2
    assert all(text.endswith(f"to go on: segtune push {run} --repo tester/roads") for text in warnings)


def test_bug_in_a_push_does_not_end_the_run_and_reads_as_one(
    on_hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "describe_run", lambda *_: None + 1)
    assert RunPush(run, HubConfig(push="end", repo="tester/roads"), base=None).finish() is None
    assert "Traceback" in caplog.text and "TypeError: unsupported operand" in caplog.text


def test_run_without_weights_is_not_pushed(on_hub: Hub, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(run / "best")
    push = RunPush(run, HubConfig(push="every_eval", repo="tester/roads"), base=None)
    push.after_evaluation(False)
    assert push.finish() is None
    assert "is not pushed now" in caplog.text and on_hub.repos == {}


@pytest.fixture
def slow_push(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A push that has begun, and that may go on; both are set by the test."""
    began, may_go_on = threading.Event(), threading.Event()
    original: Callable[..., str] = hub._push

    def waiting(*arguments: Any, **options: Any) -> str:
        began.set()
        assert may_go_on.wait(30)
        return original(*arguments, **options)

    monkeypatch.setattr(hub, "_push", waiting)
    yield began, may_go_on
    may_go_on.set()


def test_weights_are_those_of_the_moment_and_only_the_newest_wait(
    on_hub: Hub, run: Path, slow_push: tuple[threading.Event, threading.Event]
) -> None:
    began, may_go_on = slow_push
    push = RunPush(run, HubConfig(push="best", repo="tester/roads"), base=None)
    push.after_evaluation(True)
    assert began.wait(30)
    for value in (2.0, 3.0, 4.0):
        better(run, value)
        push.after_evaluation(True)
    assert len(list(run.glob(".push-*"))) == 2
    (run / "best").rename(run / "replaced just now")
    may_go_on.set()
    push.wait()
    (run / "replaced just now").rename(run / "best")
    repo = on_hub.repo("tester/roads")
    assert len(repo.commits) == 3
    weights = [on_hub.content(commit.files["model.safetensors"]) for commit in list(repo.commits.values())[1:]]
    assert weights[0] != weights[1] == (run / "best" / "model.safetensors").read_bytes()
    assert not list(run.glob(".push-*"))


def test_wrong_token_comes_to_light_before_the_first_step(
    on_hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nonsense")
    with pytest.raises(PushError, match=r"the run cannot be pushed to tester/roads: .*token.*, or hub\.push=null"):
        RunPush(run, HubConfig(push="end", repo="tester/roads"), base=None).check()
    with pytest.raises(UsageError, match="license mit"):
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        RunPush(run, HubConfig(push="end", repo="tester/roads", license="mit"), base="nvidia/mit-b0").check()
    assert on_hub.repos == {}


@pytest.mark.parametrize("base", [None, "you/base"])
@pytest.mark.parametrize("offline", [True, False])
def test_run_starts_without_the_hub(
    on_hub: Hub,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    offline: bool,
    base: str | None,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    on_hub.faults = [Fault("POST", "/repos/create", 503, 999), Fault("HEAD", "/you/base/", None, 999)]
    RunPush(run, HubConfig(push="end", repo="tester/roads"), base).check()
    assert "the run starts, but cannot be pushed to tester/roads now" in caplog.text


@pytest.mark.parametrize("hidden", [False, True])
def test_bars_of_pushes_beside_a_run_are_hidden(
    on_hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    state = [hidden]
    monkeypatch.setattr(hub, "are_progress_bars_disabled", lambda: state[0])
    monkeypatch.setattr(hub, "disable_progress_bars", lambda: state.__setitem__(0, True))
    monkeypatch.setattr(hub, "enable_progress_bars", lambda: state.__setitem__(0, False))
    seen = []
    monkeypatch.setattr(hub, "_push", lambda *_, **__: seen.append(state[0]) or "url")
    RunPush(run, HubConfig(push="end"), base=None).finish()
    assert seen == [True] and state == [hidden]


def test_logging_names_the_hub(on_hub: Hub, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "segtune"):
        RunPush(run, HubConfig(push="end", repo="tester/roads"), base=None).finish()
    assert "pushed " in caplog.text


def test_hub_that_goes_away_does_not_keep_a_run_from_its_end(
    on_hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it leave anything behind."""
    for name, value in {"LIMIT": 0.2, "GRACE": 0.2, "CHECK": 0.05}.items():
        monkeypatch.setattr(retries if name == "LIMIT" else hub, name, value)
    gone = threading.Event()

    def hangs(*_: Any, **__: Any) -> str:
        assert gone.wait(30)
        raise ConnectionError("refused")

    monkeypatch.setattr(hub, "is_out_of_reach", lambda: True)
    monkeypatch.setattr(hub, "_push", hangs)
    push = RunPush(run, HubConfig(push="best", repo="tester/roads"), base=None)
    push.after_evaluation(True)
    thread = push._thread
    assert push.finish() is None
    assert thread is not None and thread.is_alive()
    assert caplog.text.count(f"to go on: segtune push {run} --repo tester/roads") == 2
    gone.set()
    thread.join(30)
    assert not list(run.glob(".push-*"))


def test_folders_of_a_run_that_was_killed_are_removed(on_hub: Hub, run: Path) -> None:
    (run / ".push-abc").mkdir()
    (run / ".push-abc" / "model.safetensors").write_bytes(b"0" * 9)
    RunPush(run, HubConfig(push="end", repo="tester/roads"), base=None).check()
    assert not list(run.glob(".push-*"))


@pytest.mark.parametrize("repo", ["nobody", "a/b/c", "me/../x", "me/", "https://huggingface.co/me/x", "me/x y"])
def test_repository_that_cannot_be_one_is_refused_at_once(repo: str) -> None:
    with pytest.raises(ValueError, match="is no repository: write user/name"):
        HubConfig(repo=repo)
