from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from segtune.data.dataset import load_segmentation_dataset
from segtune.errors import UsageError
from segtune.inference.evaluate_checkpoint import OpenedCheckpoint
from segtune.labels.label_map import LabelMap
from segtune.report.gather import Facts, Subject, _records, find_subject, gather
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from support.report_data import RECORDS, Reader, write_data
from support.run_folders import write_run


def test_places(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert find_subject(str(run)) == (run, str(run / "best"))
    assert find_subject(str(run / "final")) == (run, str(run / "final"))
    assert find_subject(str(run)).page == run / "report.html"
    assert find_subject("user/name@main") == (None, "user/name@main")
    assert find_subject("user/name").page == Path("report.html")
    shutil.rmtree(run / "best")
    shutil.rmtree(run / "final")
    with pytest.raises(UsageError, match="has no weights yet"):
        find_subject(str(run))


def test_a_report_without_metrics_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _records(tmp_path) == []
    assert "metrics.jsonl is no file: the report has no curves" in caplog.text
    caplog.clear()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert _records(tmp_path) == [{"step": 1}] and caplog.text == ""
    (tmp_path / "final").mkdir()
    assert _records(tmp_path) == [{"step": 1}]
    assert "metrics.jsonl breaks off before the end of the run" in caplog.text


def test_facts_are_those_of_the_split_and_the_run(facts: Facts) -> None:
    assert (facts.split, facts.parameters, facts.protocol, facts.temperature) == ("test", 7, "whole", 1.0)
    assert facts.images == {"train": 1, "test": 12}
    assert facts.environment == RECORDS[0]["environment"] and len(facts.records) == len(RECORDS)
    assert facts.scores["num_images"] == 12 and facts.intervals["units"] == 12
    half = 32 * 48 // 2
    assert facts.pixels["train"].tolist() == [half, half, 0, 0, 0]
    assert facts.pixels["test"].tolist() == [11 * half, 12 * half, half, 0, 0]
    assert facts.evaluation is not None and facts.evaluation.counts.ids[0] == "a0"


def test_a_checkpoint_without_a_run_tells_where_it_was_looked_at(
    tmp_path: Path, processor: SegformerImageProcessor, label_map: LabelMap
) -> None:
    write_data(tmp_path)
    data = load_segmentation_dataset(str(tmp_path), val_fraction=0)
    subject = Subject(None, "user/name")
    found = gather(subject, OpenedCheckpoint("user/name", Reader(), processor, label_map, data, None), "")
    assert found.records == [] and found.evaluation is None and found.scores == {}
    assert found.environment["device"] == "cpu" and "torch" in found.environment
    json.dumps(found.environment)


def test_what_was_counted_before_gives_the_scores(
    tmp_path: Path, processor: SegformerImageProcessor, label_map: LabelMap, facts: Facts
) -> None:
    write_data(tmp_path)
    data = load_segmentation_dataset(str(tmp_path), val_fraction=0)
    opened = OpenedCheckpoint("user/name", Reader(), processor, label_map, data, "test")
    found = gather(Subject(None, "user/name"), opened, "", counted=facts.evaluation, at_most=2)
    assert found.scores["num_images"] == 12 and found.examination is not None
    assert len(found.examination.evaluation) == 2
    np.testing.assert_array_equal(found.scores["mean_iou"], facts.scores["mean_iou"])
