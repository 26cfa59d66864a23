"""Polygons of label maps: rasterised by others' code, they give the label map back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from rasterio.features import rasterize
from rasterio.transform import Affine

from segtune.imageio.geotiff import Georeference
from segtune.inference.polygons import _runs, coco_file, geojson, labelme, trace
from segtune.labels.label_map import LabelMap

LABELS = LabelMap.from_names(["sky", "road", "car"])


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth regions with holes, a single pixel, a line, and regions that touch at a corner; some pixels ignored."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    labels = (smooth // 86).astype(np.uint8)
    labels[5, 7] = (labels[5, 7] + 1) % 3
    labels[20, 10:40] = (labels[20, 10] + 1) % 3
    labels[30:34, 30:34] = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    labels[2:6, 20:30] = 255
    return labels


RING = np.zeros((8, 9), dtype=np.uint8)
RING[1:7, 1:8] = 1
RING[3:5, 3:6] = 2


def test_a_ring_by_hand() -> None:
    regions = {region.label: region.polygon for region in trace(RING, LABELS)}
    assert regions[1].equals(shapely.Polygon(shapely.box(1, 1, 8, 7).exterior, [shapely.box(3, 3, 6, 5).exterior]))
    assert regions[2].equals(shapely.box(3, 3, 6, 5))
    assert regions[0].area == 72 - 42
    assert sum(polygon.area for polygon in regions.values()) == 72
    assert trace(np.full((4, 4), 255, np.uint8), LABELS) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("shape", [(50, 60), (61, 47)])
def test_geojson_gives_the_map_back(shape: tuple[int, int], dtype: type[np.generic]) -> None:
    labels = blobs(*shape).astype(dtype)
    content = json.loads(json.dumps(geojson(trace(labels, LABELS), LABELS)))
    assert content["type"] == "FeatureCollection" and "crs" not in content
    assert {feature["properties"]["label"] for feature in content["features"]} == set(LABELS.names)
    shapes = [(feature["geometry"], feature["properties"]["id"]) for feature in content["features"]]
    assert np.array_equal(rasterize(shapes, labels.shape, fill=255), labels)
    assert any(len(shape["coordinates"]) > 1 for shape, _ in shapes)  # there are holes
    for feature in content["features"]:
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid and polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)
        assert feature["properties"]["area"] == polygon.area


@pytest.mark.parametrize(
    ("epsg", "transform", "crs"),
    [
        (32633, Affine(10, 0, 300000, 0, -10, 5600000), "urn:ogc:def:crs:EPSG::32633"),
        (4326, Affine(0.001, 0, 13, 0, -0.002, 52), None),
        (None, Affine(0.5, 0.1, 7, 0.2, 0.6, 9), None),
    ],
)
def test_geojson_lies_where_the_image_lies(epsg: int | None, transform: Affine, crs: str | None) -> None:
    place = Georeference(rasterio.crs.CRS.from_epsg(epsg) if epsg else None, transform)
    labels = blobs(50, 60)
    content = geojson(trace(labels, LABELS), LABELS, place)
    assert content.get("crs", {}).get("properties", {}).get("name") == crs
    shapes = [(feature["geometry"], feature["properties"]["id"]) for feature in content["features"]]
    assert np.array_equal(rasterize(shapes, labels.shape, fill=255, transform=transform), labels)
    assert all(shapely.geometry.shape(shape).exterior.is_ccw for shape, _ in shapes)


def test_labelme_paints_the_map_in_the_order_of_its_shapes() -> None:
    labels = blobs(50, 60)
    labels[labels == 255] = 0  # LabelMe has no holes, so that ignored ones are painted
    content = json.loads(json.dumps(labelme(trace(labels, LABELS), LABELS, (50, 60), "../in/a.jpg")))
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("../in/a.jpg", 50, 60)
    assert content["imageData"] is None
    exact, painted = np.full((50, 60), 255, np.uint8), Image.new("L", (60, 50), 255)
    for shape in content["shapes"]:
        assert shape["shape_type"] == "polygon"
        label, points = LABELS.names.index(shape["label"]), [tuple(point) for point in shape["points"]]
        exact = np.where(rasterize([shapely.Polygon(points)], (50, 60)) == 1, label, exact)
        ImageDraw.Draw(painted).polygon(points, fill=label, outline=label)  # as LabelMe's own converter does
    assert np.array_equal(exact, labels)
    wrong = np.asarray(painted) != labels
    assert 0 < wrong.mean() < 0.2
    assert not (wrong & ~_near_border(labels)).any()  # within one pixel of a border


def _near_border(labels: np.ndarray) -> np.ndarray:
    padded = np.pad(labels, 1, mode="edge")
    shifts = [padded[1 + dy : 51 + dy, 1 + dx : 61 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return np.logical_or.reduce([shift != labels for shift in shifts])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools under NumPy 2
def test_coco_gives_the_maps_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps = {"x/a.jpg": blobs(50, 60), "b.png": blobs(61, 47, seed=1), "ring.png": RING, "empty.png": RING * 0 + 255}
    with coco_file(tmp_path / "all.json", LABELS) as collection:
        for name, labels in maps.items():
            collection.add(name, labels.shape, trace(labels, LABELS))
        assert not (tmp_path / "all.json").exists()
    coco = COCO(tmp_path / "all.json")
    capsys.readouterr()
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(LABELS.names)
    assert {image["file_name"] for image in coco.dataset["images"]} == set(maps)
    kinds = set()
    for image in coco.dataset["images"]:
        labels = maps[image["file_name"]]
        assert (image["height"], image["width"]) == labels.shape
        found = np.full(labels.shape, 255, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation).astype(bool)
            kinds.add(type(annotation["segmentation"]))
            assert annotation["area"] == mask.sum()
            rows, columns = mask.nonzero()
            left, top = columns.min(), rows.min()
            assert annotation["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
            assert (found[mask] == 255).all()  # no overlap
            found[mask] = annotation["category_id"] - 1
        assert np.array_equal(found, labels)
    assert kinds == {list, dict}


def test_run_lengths_are_merged_over_columns() -> None:
    labels = np.zeros((6, 5), dtype=np.uint8)
    labels[2, 2] = 1
    (outer,) = [region for region in trace(labels, LABELS) if region.label == 0]
    assert _runs(outer.polygon, (6, 5)) == {"size": [6, 5], "counts": [0, 14, 1, 15]}


@pytest.mark.parametrize("tolerance", [1, 3])
def test_simplified_neighbours_share_their_border(tolerance: int) -> None:
    labels = blobs(200, 240)
    labels[labels == 255] = 0
    full, simple = trace(labels, LABELS), trace(labels, LABELS, simplify=tolerance)
    count = [sum(shapely.get_num_coordinates(region.polygon) for region in regions) for regions in (full, simple)]
    assert count[1] < 0.7 * count[0]
    assert [region.label for region in simple] == [region.label for region in full]
    polygons = [region.polygon for region in simple]
    assert all(polygon.is_valid for polygon in polygons)
    assert sum(polygon.area for polygon in polygons) == pytest.approx(labels.size)
    assert shapely.union_all(polygons).equals(shapely.box(0, 0, 240, 200))  # no gaps; with the area: no overlaps
    back = rasterize([(region.polygon, region.label) for region in simple], labels.shape, fill=255)
    assert 0 < np.mean(back != labels) < 0.05 * tolerance


def test_small_regions_go_to_their_neighbour() -> None:
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[:, 10:] = 1
    labels[3:5, 3:6] = 2
    labels[10:14, 12:16] = 2
    labels[0, 0] = 255
    kept = trace(labels, LABELS, min_region=10)
    areas = sorted((region.label, region.polygon.area) for region in kept)
    assert areas == [(0, 199.0), (1, 184.0), (2, 16.0)]
    assert len(trace(labels, LABELS, min_region=6)) == 4


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_an_image_of_fewer_pixels_than_the_smallest_region(size: tuple[int, int]) -> None:
    labels = np.zeros(size, np.uint8)
    assert [region.label for region in trace(labels, LabelMap.from_names(["a", "b"]), min_region=32)] == [0]
