from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from segtune.data.config import TransformConfig
from segtune.data.dataset import load_segmentation_dataset
from segtune.data.unlabelled.views import UnlabelledBatches, UnlabelledViews

TRANSFORMS = TransformConfig(crop_size=48, photometric=True)


@pytest.fixture(scope="module")
def rows() -> Any:
    return load_segmentation_dataset("segtune://earth")["train"].select(range(6)).remove_columns("mask")


def test_both_views_are_one_crop_and_the_box_is_the_partners(rows: Any) -> None:
    views = UnlabelledViews(rows, TRANSFORMS, seed=0, cutmix=1.0)
    views.colors = []  # so that a strong view differs by its box alone
    batch = views.__getitems__([(0, 1), (0, 4)])
    assert batch["weak"].shape == batch["partner"].shape == (2, 3, 48, 48)
    assert batch["partner_of"].tolist() == [0, 1]
    for number, (top, bottom, left, right) in enumerate(batch["boxes"].tolist()):
        inside = torch.zeros(48, 48, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        expected = torch.where(inside, batch["partner"][number], batch["weak"][number])
        assert torch.equal(batch["strong"][number], expected)
        assert 0.05 <= inside.float().mean() <= 0.55
        assert not torch.equal(batch["partner"][number], batch["weak"][number])


def test_strong_views_have_other_colours_and_weak_ones_their_own(rows: Any) -> None:
    batch = UnlabelledViews(rows, TRANSFORMS, seed=0, cutmix=0.0).__getitems__([(0, i) for i in range(6)])
    assert len(batch["partner"]) == len(batch["boxes"]) == 0
    changed = (batch["weak"] - batch["strong"]).flatten(1).abs().amax(1)
    assert (changed > 0.1).sum() >= 4
    plain = TransformConfig(crop_size=180, scale=(1, 1), horizontal_flip=0.0)
    (weak,) = UnlabelledViews(rows, plain, seed=0, cutmix=0.0).__getitems__([(0, 2)])["weak"]
    pixels = np.asarray(rows[2]["image"]).transpose(2, 0, 1) / 255
    mean, std = (np.array(each)[:, None, None] for each in (plain.mean, plain.std))
    np.testing.assert_allclose(weak.numpy(), (pixels - mean) / std, atol=1e-5)


def test_padding_is_not_real(rows: Any) -> None:
    small = TransformConfig(crop_size=100, scale=(0.25, 0.25))  # 45 of 180 pixels
    batch = UnlabelledViews(rows, small, seed=0, cutmix=0.0).__getitems__([(0, 0)])
    assert batch["real"].sum() == 45 * 45 and batch["real"][0, :45, :45].all()
    assert (batch["weak"][0, :, 45:] == 0).all() and (batch["strong"][0, :, :, 45:] == 0).all()


def test_samples_do_not_depend_on_how_a_step_is_divided(rows: Any) -> None:
    views = UnlabelledViews(rows, TRANSFORMS, seed=3, cutmix=0.5)

    def strong(layout: tuple[int, int, int]) -> torch.Tensor:
        found: list[list[torch.Tensor]] = [[] for _ in range(2)]
        shares = [iter(UnlabelledBatches(views, layout, 2, r, 3).steps(4, 6)) for r in range(layout[2])]
        for step in range(2):
            parts = [next(share) for share in shares]
            for micro in range(layout[1]):
                found[step] += [part[micro]["strong"] for part in parts]
        return torch.stack([torch.cat(step) for step in found])

    whole = strong((4, 1, 1))
    assert whole.shape == (2, 8, 3, 48, 48) and not torch.equal(whole[0], whole[1])
    for layout in ((2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)):
        assert torch.equal(strong(layout), whole)
