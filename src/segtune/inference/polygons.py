"""Polygons: label maps as regions that annotation tools and GIS read: GeoJSON, COCO, LabelMe (the extra `geo`).

Regions are traced along the edges of pixels by GDAL (rasterio.features), so that nothing is lost: rasterised, they give
the label map back. Their coordinates are x to the right and y down, (0, 0) being the upper left corner of the image.
OpenCV's contours run through the centres of pixels instead: a line one pixel wide has no area, neighbours do not touch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import numpy as np

from segtune.errors import UsageError
from segtune.files import atomic_path
from segtune.imageio.geotiff import Georeference, import_rasterio
from segtune.labels.label_map import LabelMap

PolygonFormat = Literal["geojson", "coco", "labelme"]
LABELME_VERSION = "5.5.0"  # of the format


class Region(NamedTuple):
    """A connected set of pixels of one class; `polygon` is shapely's, with holes, in pixels."""

    label: int
    polygon: Any


def trace(labels: np.ndarray, label_map: LabelMap, *, simplify: float = 0, min_region: int = 0) -> list[Region]:
    """The regions of a label map `(H, W)`; pixels of the ignore index belong to none.

    Args:
        simplify: let borders move by about so many pixels to save vertices. Neighbours keep one common border, without
            gaps or overlaps; the border of the image stays.
        min_region: regions of fewer pixels are given to their largest neighbour first.
    """
    rasterio, shapely = import_rasterio("polygons"), _import_shapely()
    ids = labels if labels.dtype.itemsize == 1 else labels.astype(np.int32)
    known = ids != label_map.ignore_index
    min_region = min(min_region, ids.size - 1)  # which the sieve takes at most
    if min_region > 1:
        ids = rasterio.features.sieve(ids, min_region, mask=known, connectivity=4)
    found = []
    for geometry, value in rasterio.features.shapes(ids, mask=known, connectivity=4):
        exterior, *holes = geometry["coordinates"]
        found.append(Region(int(value), shapely.Polygon(exterior, holes)))
    if simplify > 0 and found:
        polygons = np.array([region.polygon for region in found])
        polygons = shapely.coverage_simplify(polygons, simplify, simplify_boundary=False)
        found = [Region(region.label, polygon) for region, polygon in zip(found, polygons, strict=True)]
    return found


def outermost_first(regions: Sequence[Region]) -> list[Region]:
    """The regions in the order in which tools without holes paint them: by the area that the outline encloses, largest
    first, so that what lies in a hole is painted over what surrounds it.
    """
    shapely = _import_shapely()
    return sorted(regions, key=lambda region: -float(shapely.Polygon(region.polygon.exterior).area))


def geojson(regions: Sequence[Region], label_map: LabelMap, georeference: Georeference | None = None) -> dict[str, Any]:
    """A FeatureCollection: in the coordinates of the image's reference system, where it has one, else in pixels.

    Exterior rings run counterclockwise in those coordinates (RFC 7946, section 3.1.6). A reference system other than
    longitude and latitude is named in the member `crs` of the older GeoJSON 2008, which GDAL and QGIS read.
    """
    shapely = _import_shapely()
    features = []
    for label, polygon in regions:
        if georeference is not None:
            polygon = shapely.transform(polygon, lambda points: _to_coordinates(points, georeference))
        properties = {"label": label_map.names[label], "id": label, "area": polygon.area}
        geometry = shapely.geometry.mapping(shapely.orient_polygons(polygon, exterior_cw=False))
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    crs = _crs_name(georeference)
    named = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    return {"type": "FeatureCollection", **named, "features": features}


def labelme(
    regions: Sequence[Region], label_map: LabelMap, size: tuple[int, int], image: str | os.PathLike[str]
) -> dict[str, Any]:
    """The file that LabelMe opens beside an image of `size` (height, width).

    LabelMe knows no holes and paints shapes in their order: see `outermost_first`.
    """
    shapes: list[dict[str, Any]] = [
        {
            "label": label_map.names[label],
            "points": outline_points(polygon.exterior),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
        }
        for label, polygon in outermost_first(regions)
    ]
    image = PurePath(image).as_posix()
    fields = {"imagePath": image, "imageData": None, "imageHeight": size[0], "imageWidth": size[1]}
    return {"version": LABELME_VERSION, "flags": {}, "shapes": shapes, **fields}


class CocoFile:
    """A COCO file of many images, written as they come; see `coco_file`. Categories are numbered from 1."""

    def __init__(self, file: Any, label_map: LabelMap) -> None:
        self.file = file
        self.images: list[dict[str, Any]] = []
        self.annotations = 0
        categories = [{"id": i + 1, "name": name, "supercategory": ""} for i, name in enumerate(label_map.names)]
        self.file.write(f'{{"info": {{}}, "licenses": [], "categories": {json.dumps(categories)}, "annotations": [')

    def add(self, name: str, size: tuple[int, int], regions: Sequence[Region]) -> None:
        """An image of `size` (height, width) with an annotation for each region."""
        self.add_piece({"file_name": name, **coco_piece(size, regions)})

    def add_piece(self, piece: Mapping[str, Any]) -> None:
        """An image as `coco_piece` describes it, with its `file_name`."""
        image = {"id": len(self.images) + 1, "file_name": piece["file_name"]}
        self.images.append(image | {"height": piece["height"], "width": piece["width"]})
        for annotation in piece["annotations"]:
            numbered = {"id": self.annotations + 1, "image_id": image["id"], **annotation}
            self.file.write(("," if self.annotations else "") + "\n" + json.dumps(numbered))
            self.annotations += 1

    def close(self) -> None:
        self.file.write(f'\n], "images": {json.dumps(self.images)}}}\n')


def coco_piece(size: tuple[int, int], regions: Sequence[Region]) -> dict[str, Any]:
    """Of one image of `size`, (height, width): "height", "width" and "annotations" without numbers; JSON-able.

    A region with holes becomes an uncompressed run-length encoding, since COCO's polygons know no holes.
    """
    annotations = []
    for label, polygon in regions:
        left, top, right, bottom = polygon.bounds
        annotations.append(
            {
                "category_id": label + 1,
                "segmentation": _runs(polygon, size) if polygon.interiors else [_flat(polygon.exterior)],
                "area": polygon.area,
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
            }
        )
    return {"height": size[0], "width": size[1], "annotations": annotations}


@contextmanager
def coco_file(path: Path, label_map: LabelMap) -> Iterator[CocoFile]:
    """A `CocoFile` at `path`, which is there when it is complete."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        coco = CocoFile(file, label_map)
        yield coco
        coco.close()


def _to_coordinates(points: np.ndarray, georeference: Georeference) -> np.ndarray:
    """Pixels `(n, 2)` in the coordinates of the reference system."""
    a, b, c, d, e, f = tuple(georeference.transform)[:6]
    x, y = points.T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def _crs_name(georeference: Georeference | None) -> str | None:
    if georeference is None or georeference.crs is None or georeference.crs.to_epsg() == 4326:
        return None  # longitude and latitude are what GeoJSON means by itself
    code = georeference.crs.to_epsg()
    return f"urn:ogc:def:crs:EPSG::{code}" if code else str(georeference.crs.to_wkt())


def outline_points(ring: Any) -> list[list[float]]:
    """The vertices [x, y] of a ring, the first one once."""
    points: list[list[float]] = np.asarray(ring.coords)[:-1].tolist()
    return points


def _flat(ring: Any) -> list[float]:
    return [value for point in outline_points(ring) for value in point]


def _runs(polygon: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Lengths of runs of 0 and 1 by turns, column after column."""
    rasterio = import_rasterio("polygons")
    left, top, right, bottom = (round(value) for value in polygon.bounds)
    shape, shift = (bottom - top, right - left), rasterio.Affine.translation(left, top)
    inside = rasterio.features.rasterize([polygon], out_shape=shape, transform=shift, dtype=np.uint8)  # (h, w)
    steps = np.diff(inside.T.astype(np.int8), axis=1, prepend=0, append=0)  # (w, h + 1): 1 starts a run, -1 ends it
    columns, rows = steps.nonzero()
    edges = (columns + left) * size[0] + rows + top
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # a run down to the bottom goes on at the top
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(edges, prepend=0, append=size[0] * size[1]).tolist()
    return {"size": list(size), "counts": counts if counts[-1] else counts[:-1]}


def _import_shapely() -> Any:
    try:
        import shapely
        import shapely.geometry
    except ImportError:
        raise UsageError("polygons need the package shapely: pip install 'segtune[geo]'") from None
    return shapely
