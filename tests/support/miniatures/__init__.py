"""Small copies of published data sets as they lie on disk: names of files and folders, values, types of files.

Pictures are drawn here; only their sides are smaller than the real ones. What a mask value means is written down once
more, by name, so that the tables of the recipes are checked against something else than themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.miniatures import id_maps, other_masks, tables, templates
from support.miniatures.drawing import Miniature

MINIATURES: dict[str, Callable[[Path], Miniature]] = {
    "ade20k/segformer-b0": id_maps.ade20k,
    "camvid/segformer-b0": id_maps.camvid,
    "celebamask-hq/segformer-b0": other_masks.celebamask_hq,
    "cityscapes/segformer-b0": id_maps.cityscapes,
    "coco-stuff/segformer-b0": id_maps.coco_stuff,
    "drive/segformer-b0": other_masks.drive,
    "foodseg103/segformer-b0": tables.foodseg103,
    "isaid/segformer-b0": other_masks.isaid,
    "kvasir-seg/segformer-b0": other_masks.kvasir_seg,
    "lip/segformer-b0": id_maps.lip,
    "loveda/segformer-b0": id_maps.loveda,
    "my-binary": templates.my_binary,
    "my-coco": templates.my_coco,
    "my-folder": templates.my_folder,
    "oxford-pet/segformer-b0": id_maps.oxford_pet,
    "pascal-context/segformer-b0": id_maps.pascal_context,
    "pascal-voc/segformer-b0": id_maps.pascal_voc,
    "potsdam/segformer-b0": other_masks.potsdam,
    "scene-parse-150/segformer-b0": tables.scene_parse_150,
    "sen1floods11/segformer-b0": other_masks.sen1floods11,
    "sidewalk-semantic/segformer-b0": tables.sidewalk_semantic,
}
ON_THE_HUB = {
    "foodseg103/segformer-b0": "EduardoPacheco/FoodSeg103",
    "sidewalk-semantic/segformer-b0": "segments/sidewalk-semantic",
}
