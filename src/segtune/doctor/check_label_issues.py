"""Label issues: mislabelled masks, ranked by how much of each a trained model contradicts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from segtune.bars import progress_bar
from segtune.data.index import Sample
from segtune.data.samples import read_pair
from segtune.doctor.case import Case
from segtune.doctor.findings import Finding
from segtune.evaluation.label_issues import label_issue, median_share, ranked, suspects
from segtune.inference.segmenter import Segmenter, eval_mode
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.viz.numbers import count, percent

LISTED = 20  # images that are named where none stands out


def find_label_issues(
    case: Case, samples: Sequence[Sample], model: nn.Module, processor: SegformerImageProcessor
) -> Finding | None:
    """Rank masks by how much of them a trained model contradicts; None without samples."""
    segmenter = Segmenter(model, processor, num_labels=case.label_map.num_labels)
    issues = {}
    with eval_mode(model):
        for sample in progress_bar(samples, desc="label issues", leave=False):
            row = {"image": case.opener.image(sample)[0], "mask": case.opener.mask(sample)[0]}
            image, labels = read_pair(row, case.label_map, *segmenter.form)  # (H, W, C), (H, W)
            prediction, confidence = segmenter(image, confidence=True)  # (H, W) each
            assert confidence is not None
            issues[sample] = label_issue(labels, prediction, confidence, case.label_map.ignore_index)
    if not issues:
        return None
    ordered, found = ranked(issues), suspects(issues)
    told = f"the model is sure of another class in {percent(median_share(issues))} of the pixels of the median mask"
    told += f"; {count(len(found), 'mask')} of {len(ordered)} {'stands' if len(found) == 1 else 'stand'} out"
    worst = issues[ordered[0]]
    if worst.pair:
        label, predicted = (case.label_map.names[index] for index in worst.pair)
        told += f", the clearest with {percent(worst.share)} of the pixels"
        told += f", mostly {predicted} where the mask says {label}"
    return case.finding(
        "label-issues",
        "warning" if found else "info",
        told,
        found or ordered[:LISTED],
        "look at these masks first",
        {"shares": {sample.id: round(issues[sample].share, 5) for sample in ordered}},
        drop=(),
    )
