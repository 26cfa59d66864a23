"""Images by rows: arrays, resized ones; and items that are made ahead."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

from segtune.imageio.raster import ArrayRaster, read_ahead, resized
from segtune.segformer.image_processing_segformer import resize


def _photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("size", [(100, 70), (50, 35), (333, 401), (31, 200), (230, 17)])
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
def test_rows_of_a_resized_raster_are_those_of_the_resized_image(size: tuple[int, int], resample: int) -> None:
    photo = _photo(100, 70)
    raster = resized(ArrayRaster(photo), size, resample)
    assert (raster.height, raster.width) == size
    rows = np.concatenate([raster.read(top, min(top + 13, size[0])) for top in range(0, size[0], 13)])
    difference = np.abs(rows.astype(int) - resize(photo, size, resample).astype(int))
    assert difference.max() <= 1  # Pillow's fixed-point weights
    assert (difference > 0).mean() < 0.02


def test_few_rows_are_in_memory_while_a_large_image_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (401, 60, 3), dtype=np.uint8)
    whole = resized(ArrayRaster(photo), (37, 30), Image.Resampling.BILINEAR).read(0, 37)
    taken: list[int] = []

    class Watched(ArrayRaster):
        def read(self, top: int, bottom: int) -> np.ndarray:
            taken.append(bottom - top)
            return super().read(top, bottom)

    monkeypatch.setattr("segtune.imageio.raster.ROWS", 50)
    rows = resized(Watched(photo), (37, 30), Image.Resampling.BILINEAR).read(0, 37)
    assert np.abs(rows.astype(int) - whole.astype(int)).max() <= 1
    assert len(taken) == 10 and max(taken) <= 50 + 2 * 34


def test_other_channels_and_types_are_resized_alike() -> None:
    photo = _photo(60, 40, channels=5).astype(np.float32)
    raster = resized(ArrayRaster(photo), (90, 30), Image.Resampling.BILINEAR)
    rows = np.concatenate([raster.read(top, top + 30) for top in (0, 30, 60)])
    np.testing.assert_allclose(rows, resize(photo, (90, 30), Image.Resampling.BILINEAR), atol=1e-2)
    assert resized(raster, (90, 30), Image.Resampling.BILINEAR) is raster


def test_items_are_made_ahead_in_their_order() -> None:
    made: list[int] = []
    threads = set()

    def items():
        for i in range(5):
            made.append(i)
            threads.add(threading.get_ident())
            yield i

    used = read_ahead(items())
    assert next(used) == 0
    assert list(used) == [1, 2, 3, 4]
    assert threading.get_ident() not in threads and len(threads) == 1


def test_only_so_many_are_made_ahead_and_the_thread_ends() -> None:
    made: list[int] = []
    used = read_ahead((made.append(i) or i for i in range(100)), count=2)  # type: ignore[func-returns-value]
    assert [next(used), next(used)] == [0, 1]
    used.close()
    assert len(made) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_errors_of_the_thread_arrive_in_their_place() -> None:
    def items():
        yield 1
        raise ValueError("broken")

    used = read_ahead(items())
    assert next(used) == 1
    with pytest.raises(ValueError, match="broken"):
        next(used)
