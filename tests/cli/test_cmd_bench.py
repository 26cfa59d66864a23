from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_bench_prints_one_json_object_and_draws(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segtune.bench.peak_memory", lambda bench, side, task: 300.0 + bench.size)
    arguments = ("bench", "--size", "32", "--labels", "3", "--repeats", "1", "--json")
    code, out, err = segtune_command(*arguments, "--plot", tmp_path / "c.png", "--plot-sizes", "32,64")
    assert code == 0 and "c.png" in err
    found = json.loads(out)
    assert [row["size"] for row in found["curve"]] == [32, 64]
    assert found["results"][0]["bench"]["labels"] == 3 and found["results"][0]["train"]["wall"]["ratio"] > 0
    assert (tmp_path / "c.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--variants", "b9"), "variant 'b9' does not exist"),
        (("--dtype", "fp8"), "dtype 'fp8': fp32 or bf16"),
        (("--plot", "x.png", "--plot-sizes", "a"), "--plot-sizes a: whole numbers"),
    ],
)
def test_bench_refuses(segtune_command: Any, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = segtune_command("bench", *arguments)
    assert (code, out) == (2, "") and message in err
