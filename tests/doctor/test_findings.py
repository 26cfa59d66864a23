from __future__ import annotations

import ast
import re
from pathlib import Path

from segtune.data.index import Sample
from segtune.doctor.check_files import SCAN_CODES
from segtune.doctor.findings import LEAVE_OUT, Finding, ranked, sentence

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "segtune"
SOURCES = [*(PACKAGE / "doctor").glob("*.py")]
COMPUTED = {"unnamed-ids", "unnamed-colors", "duplicates", "leaked-duplicates", "conflicting-duplicates"}
COMPUTED |= {"near-duplicates", "leaked-near-duplicates", "annotation-…", "nodata-named", "several-frames"}


def test_sentences() -> None:
    assert sentence("a mask of 3") == "A mask of 3."
    assert sentence("dataset.labels: no class 'x'") == "dataset.labels: no class 'x'."


def test_errors_come_first_and_the_order_stays() -> None:
    given = [
        Finding("a", "info", ""),
        Finding("b", "error", ""),
        Finding("c", "warning", ""),
        Finding("d", "error", ""),
    ]
    assert [finding.code for finding in ranked(given)] == ["b", "d", "c", "a"]


def test_samples_that_may_be_left_out_are_said_to_be() -> None:
    sample = Sample("a", "train", Path("a"), Path("b"))
    assert Finding("x", "error", "", fix=("y",)).to_dict()["fix"] == ["y"]
    assert Finding("x", "error", "", fix=("y",), drop=(sample,)).to_dict()["fix"] == ["y", LEAVE_OUT]


def test_every_code_is_explained() -> None:
    """The codes that a call that makes a finding has as a text, and those that it computes."""
    calls = [
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].lower() in ("finding", "_finding")
    ]
    constants = [[a.value for a in call.args[:2] if isinstance(a, ast.Constant)] for call in calls]
    codes = {texts[0] for texts in constants if texts} - {"error", "warning"}
    assert len(codes) >= 30
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    explained = {
        code for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for code in re.findall(r"`(.*?)`", row)
    }
    assert explained == codes | set(SCAN_CODES.values()) | COMPUTED
