from __future__ import annotations

import pytest
import torch

from segtune.pretraining.masked_image_model import MaskedImageModel, absolute_error, hidden_pixels
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerModel
from support.networks import TINY

MASK = torch.tensor([[[True, False, False], [False, False, True]]])  # squares of 32 pixels of a picture of 64 x 96
SIDES = (64, 96)


@pytest.fixture(params=[(1, 2, 3, 4), (4,)], ids=str)
def network(request: pytest.FixtureRequest) -> MaskedImageModel:
    torch.manual_seed(0)
    return MaskedImageModel(SegformerModel(SegformerConfig(**TINY)), request.param).eval()


def test_hidden_pixels_by_hand() -> None:
    hidden = hidden_pixels(torch.tensor([[[True, False], [False, True]]]), torch.zeros(1, 3, 4, 4))
    assert hidden.int().tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]]


@torch.no_grad()
def test_nothing_of_a_hidden_pixel_is_seen(network: MaskedImageModel) -> None:
    pixels = torch.randn(1, 3, *SIDES)
    painted = network(pixels, MASK)
    assert painted.shape == pixels.shape
    hidden = hidden_pixels(MASK, pixels)[:, None]
    changed = torch.where(hidden, torch.randn_like(pixels) * 100, pixels)
    assert torch.equal(network(changed, MASK), painted)
    for place in ((0, 0, 0, 32), (0, 2, 32, 0), (0, 1, 63, 63)):  # the neighbours of hidden squares are seen
        seen = pixels.clone()
        seen[place] += 10
        assert not hidden[place[0], 0, place[2], place[3]] and not torch.equal(network(seen, MASK), painted)


def test_only_counted_pixels_are_learned_by_hand(network: MaskedImageModel) -> None:
    counted = torch.tensor([[[True, False], [False, False]]])
    painted, pixels = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    painted[0, :, 0, 0] = torch.tensor([1.0, -2.0, 0.5])
    painted[0, :, 1, 1] = 7.0
    assert absolute_error(painted, pixels, counted).item() == 3.5
    pixels[0, :, 0, 1] = 9.0
    assert absolute_error(painted, pixels, counted).item() == 3.5
    pixels[0, 0, 0, 0] = 3.0
    assert absolute_error(painted, pixels, counted).item() == 4.5


def test_every_weight_of_the_encoder_learns(network: MaskedImageModel) -> None:
    pixels = torch.randn(2, 3, *SIDES)
    mask = MASK.repeat(2, 1, 1)
    absolute_error(network(pixels, mask), pixels, hidden_pixels(mask, pixels)).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # Softmax is the same whatever is added to all scores of a query: a bias of the keys does nothing.
    assert [name for name in still if not name.endswith("key.bias")] == []


def test_a_head_paints_the_pixels_below_its_token() -> None:
    """A square's colours are those of the token that stands for it, at each stride."""
    for stage, stride in enumerate((4, 8, 16, 32), start=1):
        network = MaskedImageModel(SegformerModel(SegformerConfig(**TINY)), (stage,))
        (head,) = network.heads.values()
        with torch.no_grad():
            head.weight.zero_()
            head.bias.copy_(torch.arange(3.0).repeat_interleave(stride**2))
            painted = network(torch.randn(1, 3, *SIDES), MASK)
        expected = torch.arange(3.0)[None, :, None, None].expand(1, 3, *SIDES)
        assert torch.equal(painted, expected)
