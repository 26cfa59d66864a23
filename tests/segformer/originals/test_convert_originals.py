from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segtune.errors import DataError, UsageError
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.segformer.originals.convert_originals import convert_original, open_original
from segtune.segformer.originals.source import Source
from segtune.segformer.parameter_names import name_in_transformers_5


def libreyolo_file(path: Path, **beside: object) -> SegformerForSemanticSegmentation:
    """A small network, saved as LibreYOLO does."""
    torch.manual_seed(0)
    shape = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 2, 3, 4)}
    model = SegformerForSemanticSegmentation(SegformerConfig(**shape, decoder_hidden_size=12, num_labels=2)).eval()
    state = {
        name_in_transformers_5(key).replace("segformer.", "encoder."): value
        for key, value in model.state_dict().items()
    }
    torch.save({"model": state, **beside}, path)
    return model


def test_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libreyolo_file(tmp_path / "a.pt")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("segtune.segformer.originals.convert_originals.SegformerImageProcessor.save_pretrained", fail)
    with pytest.raises(OSError, match="no"):
        convert_original(tmp_path / "a.pt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_licence_is_looked_at_before_the_weights(tmp_path: Path) -> None:
    libreyolo_file(tmp_path / "a.pt")
    with pytest.raises(UsageError, match="identifier such as"):
        convert_original(tmp_path / "a.pt", tmp_path / "out", license="My Own")
    assert not (tmp_path / "out").exists()


def test_licence_that_libreyolo_states(tmp_path: Path) -> None:
    libreyolo_file(tmp_path / "a.pt", weight_license="NVIDIA Source Code License", names={0: "sky", 1: "road"})
    done = convert_original(tmp_path / "a.pt", tmp_path / "out")
    assert "The checkpoint itself states: 'NVIDIA Source Code License'." in (tmp_path / "out" / "README.md").read_text()
    assert done.model.config.id2label == {0: "sky", 1: "road"}


def test_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--from timm: one of auto, keras, libreyolo, mmseg, nvlabs"):
        open_original(tmp_path / "a.pt", "timm")


def test_shapes_of_no_network_are_refused_before_memory_is_taken() -> None:
    """A kilobyte of a file may ask for terabytes of weights."""
    huge = {"encoder.patch_embeddings.0.proj.weight": torch.empty(65536, 3, 1, 1, device="meta")}
    huge |= {"encoder.block.0.0.mlp.dense1.weight": torch.empty(262144, 1, device="meta")}
    with pytest.raises(DataError, match=r"a is no SegFormer of mmseg: missing: .*; of another shape: "):
        Source("mmseg", huge).model("a")
    for shape in ((0, 3, 1, 1), (8,), (8, 3, 1, 1)):
        odd = {"encoder.patch_embeddings.0.proj.weight": torch.empty(shape)}
        odd |= {"encoder.block.0.0.mlp.dense1.weight": torch.empty(4, 8)}
        with pytest.raises(DataError, match="a is no SegFormer"):
            Source("mmseg", odd).model("a")
