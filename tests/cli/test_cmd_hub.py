from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import segtune
from segtune.segformer.originals.card import terms
from segtune.segformer.originals.convert_originals import Converted
from segtune.segformer.originals.source import Source


def test_push_passes_on_what_was_given_and_nothing_else(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, dict[str, Any]]] = []

    def push_run(run: Path, **settings: Any) -> str:
        calls.append((run, settings))
        return "https://hub/me/x"

    monkeypatch.setattr("segtune.hub.push.push_run", push_run)
    assert segtune_command("push", tmp_path) == (0, f"pushed {tmp_path} to https://hub/me/x\n", "")
    options = ("--repo", "me/x", "--private", "--branch", "v1", "--license", "mit", "--create-pr", "--with-code")
    segtune_command("push", tmp_path, *options, "--no-pictures")
    flags = {"private": True, "create_pr": True, "with_code": True, "pictures": False}
    assert calls == [
        (tmp_path, {"create_pr": False}),
        (tmp_path, {"repo": "me/x", "branch": "v1", "license": "mit", **flags}),
    ]


def test_push_makes_a_space_afterwards(segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("segtune.hub.push.push_run", lambda run, **settings: "https://hub/me/x")
    monkeypatch.setattr("segtune.hub.space.requirements", list)
    push_space = lambda *given, **options: calls.append((given, options)) or "https://hub/spaces/me/y"  # noqa: E731
    monkeypatch.setattr("segtune.hub.space.push_space", push_space)
    code, out, _ = segtune_command("push", tmp_path, "--space", "me/y", "--branch", "v1", "--no-pictures")
    assert (code, out) == (0, f"pushed {tmp_path} to https://hub/me/x\nmade the Space https://hub/spaces/me/y\n")
    assert calls == [((tmp_path, "me/y", "https://hub/me/x"), {"branch": "v1", "pictures": False})]


def test_push_refuses_a_space_that_cannot_be(segtune_command: Any, tmp_path: Path) -> None:
    code, _, err = segtune_command("push", tmp_path, "--space", "demo")
    assert code == 2 and err.startswith("error: --space: Value error, 'demo' is no repository: write user/name")
    code, _, err = segtune_command("push", tmp_path, "--space", "me/y", "--create-pr")
    assert (code, err.count("\n")) == (2, 1) and "give it without --create-pr" in err


def test_push_wants_a_run(segtune_command: Any, tmp_path: Path) -> None:
    code, out, err = segtune_command("push", tmp_path)
    assert (code, out, err) == (2, "", f"error: {tmp_path} is no run folder: it has no recipe.yaml\n")


def test_convert_names_what_it_wrote(segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(path: Path, output: Path, layout: str, *, encoder_only: bool, license: str | None) -> Any:
        assert (path, layout, encoder_only, license) == (tmp_path / "a.pth", "mmseg", True, "mit")
        config = segtune.SegformerConfig(hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], num_labels=3)
        model = segtune.SegformerForSemanticSegmentation(config)
        return Converted(model, Source("mmseg", {}, left_out={"the head": ["a", "b"]}), terms("mmseg", license=license))

    (tmp_path / "a.pth").touch()
    monkeypatch.setattr("segtune.segformer.originals.convert_originals.convert_original", convert)
    arguments = (
        "convert",
        tmp_path / "a.pth",
        tmp_path / "out",
        "--from",
        "mmseg",
        "--encoder-only",
        "--license",
        "mit",
    )
    code, out, _ = segtune_command(*arguments)
    assert (code, out.splitlines()) == (
        0,
        [
            f"{tmp_path / 'out'}: SegformerForSemanticSegmentation, 3 labels, 0.4 million parameters",
            "left out: the head (2 tensors: a, b)",
            "pictures: normalised as ImageNet's; the checkpoint does not say how",
            "licence: mit (README.md says why)",
            f"next: segtune train RECIPE model.name={tmp_path / 'out'}",
        ],
    )


def test_convert_refuses(segtune_command: Any, tmp_path: Path) -> None:
    code, _, err = segtune_command("convert", tmp_path / "a.pth", tmp_path / "out", "--from", "timm")
    assert (code, err) == (2, "error: --from timm: one of auto, keras, libreyolo, mmseg, nvlabs\n")
    code, _, err = segtune_command("convert", tmp_path / "a.pth", tmp_path / "out")
    assert (code, err) == (1, f"error: {tmp_path / 'a.pth'}: no such file\n")
    (tmp_path / "a.pth").write_text("hello")
    code, _, err = segtune_command("convert", tmp_path / "a.pth", tmp_path)
    assert (code, err) == (2, f"error: {tmp_path} exists already: name a folder that does not\n")
    code, _, err = segtune_command("convert", tmp_path / "a.pth", tmp_path / "out")
    assert code == 1 and err.count("\n") == 1 and not (tmp_path / "out").exists()
