"""The doctor on real data: clean, and with faults planted in it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.data.config import DatasetConfig
from segtune.data.doctor.examine import Diagnosis, examine
from segtune.data.transforms import TransformConfig

_spec = importlib.util.spec_from_file_location("plant_faults", Path(__file__).with_name("plant_faults.py"))
assert _spec is not None and _spec.loader is not None
plant_faults = importlib.util.module_from_spec(_spec)
sys.modules["plant_faults"] = plant_faults  # its NamedTuple looks itself up there
_spec.loader.exec_module(plant_faults)

# Climate zones have few edges in the pictures, and the tiles are square and no video.
NOT_TOLD_OF_EARTH = {
    "shifted_masks",
    "mirrored_masks",
    "exchanged_masks",
    "transposed_mask",
    "frames_of_a_test_drive_in_train",
}


def examined(path: Path | str, **settings: Any) -> Diagnosis:
    return examine(DatasetConfig(path=str(path), **settings), TransformConfig(crop_size=128))


def codes(diagnosis: Diagnosis, *severities: str) -> list[str]:
    return [finding.code for finding in diagnosis.findings if finding.severity in (severities or finding.severity)]


def missed(source: Path, target: Path, faults: list[Any]) -> tuple[list[str], list[str]]:
    """The planted faults that are not found, and the files named by errors in which nothing was planted."""
    planted = plant_faults.plant(source, target, faults)
    findings = examined(target).findings
    names = [
        fault.plant.__name__
        for fault, files in zip(faults, planted, strict=True)
        if not plant_faults.is_found(fault, files, findings)
    ]
    known = {file for files in planted for file in files}
    strange = [file for f in findings if f.severity == "error" for file in f.files if file not in known]
    return names, strange


def test_clean_tiles_have_no_fault() -> None:
    diagnosis = examined("segtune://earth")
    assert len(diagnosis.case.facts) == 170
    assert codes(diagnosis, "error", "warning") == []
    assert codes(diagnosis) == ["one-class", "ignored-share"]


def test_faults_planted_in_tiles_are_found(earth: Path, tmp_path: Path) -> None:
    faults = [fault for fault in plant_faults.FAULTS if fault.plant.__name__ not in NOT_TOLD_OF_EARTH]
    assert len(faults) >= 38
    assert missed(earth, tmp_path / "earth", faults) == ([], [])


@pytest.mark.slow
def test_clean_street_scenes_have_no_error(camvid: Path) -> None:
    diagnosis = examined(camvid)
    assert len(diagnosis.case.facts) == 701
    assert codes(diagnosis, "error") == []
    warnings = {finding.code: finding.files for finding in diagnosis.findings if finding.severity == "warning"}
    # A mask of the published data is broken; val is a stretch of a drive that is in train, and so is a part of test.
    assert warnings["misfit-masks"] == ("masks/test/Seq05VD_f02610.png",)
    assert set(warnings) == {"misfit-masks", "leaked-sequence"}


@pytest.mark.slow
def test_faults_planted_in_street_scenes_are_found(camvid: Path, tmp_path: Path) -> None:
    assert len(plant_faults.FAULTS) >= 45
    assert missed(camvid, tmp_path / "camvid", list(plant_faults.FAULTS)) == ([], [])


def test_report_is_json_with_all_files(earth: Path, tmp_path: Path) -> None:
    fault = next(fault for fault in plant_faults.FAULTS if fault.code == "channel-order")
    planted = plant_faults.plant(earth, tmp_path / "earth", [fault])
    report = json.loads(json.dumps(examined(tmp_path / "earth").to_dict()))
    assert report["samples"] == {"train": 94, "val": 39, "test": 37}
    assert (report["errors"], report["warnings"]) == (0, 1)
    (found,) = (item for item in report["findings"] if item["code"] == "channel-order")
    assert sorted(found["files"]) == sorted(planted[0])
    assert found["mend"][-1].startswith("or leave these samples out")
    ocean = report["classes"][0]
    assert (ocean["name"], ocean["color"]) == ("ocean", "#2663a6")
    masks = [np.asarray(Image.open(path)) for path in (earth / "masks" / "train").glob("*.png")]
    assert ocean["pixels"]["train"] == sum(int((mask == 0).sum()) for mask in masks)
    assert ocean["images"]["train"] == sum(bool((mask == 0).any()) for mask in masks)
