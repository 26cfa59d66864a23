"""The table of layers, on a network that takes milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segtune.cli import main
from segtune.export import sensitivity as module
from segtune.export.layer_kinds import KINDS, Layer

pytest.importorskip("onnxruntime")
LAYERS = [
    Layer("a", "a_out", "classifier", "head"),
    Layer("b", "b_out", "softmax", "stage 1"),
    Layer("c", "c_out", "queries", "stage 1"),
]


def test_choices() -> None:
    found = {(one.name, one.others): one.layers for one in module._choices(LAYERS)}
    assert found[("every layer", False)] == {"a", "b", "c"}
    assert found[("int8", False)] == {"a", "c"}
    assert found[("softmax", False)] == {"b"} and found[("softmax", True)] == {"a", "c"}
    # of a stage, what an export would quantise
    assert found[("stage 1", False)] == {"c"} and found[("stage 1", True)] == {"a"}
    assert ("residual sums", False) not in found and ("stage 2", False) not in found


def row(name: str, others: bool, rounded: int = 3, group: str = "kind") -> dict[str, object]:
    measured = {"agreement": 0.98765, "difference": -0.0123, "interval": [-0.03, 0.004], "time": 1.234}
    return {"group": group, "name": name, "others": others, "rounded": rounded} | (measured if rounded else {})


def test_table() -> None:
    rows = [row("int8", False, group="all"), row("softmax", False, 0), row("softmax", True)]
    assert module.sensitivity_markdown({"rows": rows}).splitlines()[2:] == [
        "| int8 | 0.9877 | +0.0123 [-0.0040, +0.0300] | 1.23 |  |  |  |",
        "| softmax | stays float |  |  | 0.9877 | +0.0123 [-0.0040, +0.0300] | 1.23 |",
    ]


def test_time_in_turns() -> None:
    calls: list[str] = []
    own, ratio = module.in_turns(lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == ["a", "b"] * (module.REPEATS + 1)
    assert own >= 0 and ratio > 0


@pytest.mark.slow
def test_command(
    earth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.command_runs import TINY

    monkeypatch.chdir(tmp_path)
    for words in (
        ["train", "demo", "training.output_dir=run", *TINY],
        ["sensitivity", "run/best", "demo", "--images", "2", "--calibration", "2", "--json"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main(words)
        assert not left.value.code
    found = json.loads(capsys.readouterr().out)
    assert (found["split"], found["images"], found["calibration"]) == ("test", 2, 2)
    assert {one["name"] for one in found["rows"] if one["group"] == "kind"} == set(KINDS)
    assert all(0 <= one["agreement"] <= 1 and one["time"] > 0 for one in found["rows"] if one["rounded"])
    (every,) = (one for one in found["rows"] if one["name"] == "every layer")
    assert every["rounded"] > 50 and every["agreement"] < 1
    assert [one["name"] for one in found["files"]] == ["fp32", "int8"]
    assert found["files"][0]["agreement"] == 1 and found["files"][0]["difference"] == 0
    assert found["verdict"]["recommended"] in {"fp32", "int8"}
