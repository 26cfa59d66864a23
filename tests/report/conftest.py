"""The facts of a report about known images."""

from __future__ import annotations

import json

import pytest

from segtune.data.checks import check_masks
from segtune.data.dataset import load_segmentation_dataset
from segtune.inference.evaluate_checkpoint import OpenedCheckpoint
from segtune.labels.label_map import LabelMap
from segtune.report.gather import Facts, Subject, gather
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from support.report_data import NAMES, RECORDS, Reader, write_data


@pytest.fixture(scope="session")
def label_map() -> LabelMap:
    return LabelMap.from_names(NAMES)


@pytest.fixture(scope="session")
def processor() -> SegformerImageProcessor:
    """Keeps values and sizes as they are."""
    return SegformerImageProcessor(do_resize=False, rescale_factor=1.0, image_mean=[0.0] * 3, image_std=[1.0] * 3)


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory, processor: SegformerImageProcessor) -> Facts:
    """What a report of the test split says; not to be changed, see `dataclasses.replace`."""
    folder = tmp_path_factory.mktemp("report")
    run = folder / "a run & more"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS))
    write_data(folder)
    data = load_segmentation_dataset(str(folder), val_fraction=0)
    label_map = LabelMap.from_names(NAMES)
    pixels = check_masks(data, label_map)
    subject = Subject(run, str(run / "best"))
    opened = OpenedCheckpoint(subject.checkpoint, Reader(), processor, label_map, data, "test")
    return gather(subject, opened, "a: <b>\n", pixels=pixels)
