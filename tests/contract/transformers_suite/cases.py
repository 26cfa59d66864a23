"""SegFormer's model, configuration and image processor under transformers' shared tests; run by `suite.py`.

Environment: SUITE_FOLDER (what `suite.py` fetched) and SUITE_CLASSES, "transformers" or "segtune": whose classes.
"""

from __future__ import annotations

import os
import unittest

import torch
import transformers
from shared_tests import (
    ConfigTester,
    ImageProcessingTester,
    ImageProcessingTestMixin,
    ModelTesterMixin,
    PostProcessSemanticSegmentationTestMixin,
    floats_tensor,
    ids_tensor,
    prepare_image_inputs,
)

IS_5 = ImageProcessingTester is not None
if os.environ["SUITE_CLASSES"] == "segtune":
    import segtune as classes
    from segtune import SegformerImageProcessor as Processor
else:
    if IS_5:
        from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil as Processor
    else:
        from transformers import SegformerImageProcessor as Processor

    classes = transformers

SIDE, BATCH, LABELS = 64, 3, 4


class SegformerModelTester:
    """A small network and a batch for it."""

    batch_size = BATCH
    image_size = SIDE
    is_training = True

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self):
        return classes.SegformerConfig(
            image_size=SIDE,
            num_channels=3,
            num_encoder_blocks=4,
            depths=[1, 1, 1, 1],
            sr_ratios=[8, 4, 2, 1],
            hidden_sizes=[8, 8, 16, 16],
            num_attention_heads=[1, 1, 2, 2],
            mlp_ratios=[2, 2, 2, 2],
            decoder_hidden_size=16,
            num_labels=LABELS,
        )

    def prepare_config_and_inputs_for_common(self):
        """The shared tests begin with this method."""
        return self.get_config(), {"pixel_values": floats_tensor([BATCH, 3, SIDE, SIDE])}


class SegformerModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        classes.SegformerModel,
        classes.SegformerForSemanticSegmentation,
        classes.SegformerForImageClassification,
    )
    test_resize_embeddings = False
    test_pruning = test_head_masking = False  # transformers 4: SegFormer has neither there

    def setUp(self) -> None:
        self.model_tester = SegformerModelTester(self)
        self.config_tester = ConfigTester(
            self,
            config_class=classes.SegformerConfig,
            has_text_modality=False,
            common_properties=["num_encoder_blocks", "hidden_sizes", "num_attention_heads"],
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    @unittest.skip(reason="pixels have no embeddings to set")
    def test_inputs_embeds(self) -> None: ...

    @unittest.skip(reason="pixels have no embeddings to set")
    def test_model_get_set_embeddings(self) -> None: ...

    def test_hidden_states_output(self) -> None:
        """Four maps, of a quarter to a thirty-second of the image's side."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            states = model_class(config).eval()(**inputs, output_hidden_states=True).hidden_states
            shapes = [
                (BATCH, c, SIDE // s, SIDE // s) for c, s in zip(config.hidden_sizes, (4, 8, 16, 32), strict=True)
            ]
            assert [tuple(state.shape) for state in states] == shapes

    def test_attention_outputs(self) -> None:
        """A map of every block, from each position to each position after sequence reduction."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        for model_class in self.all_model_classes:
            attentions = model_class(config).eval()(**inputs, output_attentions=True).attentions
            shapes = []
            for heads, stride, ratio in zip(config.num_attention_heads, (4, 8, 16, 32), config.sr_ratios, strict=True):
                positions = (SIDE // stride) ** 2
                shapes.append((BATCH, heads, positions, positions // ratio**2))
            assert [tuple(one.shape) for one in attentions] == shapes
            for one in attentions:
                torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]))

    def test_semantic_segmentation(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = classes.SegformerForSemanticSegmentation(config)
        outputs = model(**inputs, labels=ids_tensor([BATCH, SIDE, SIDE], LABELS))
        assert tuple(outputs.logits.shape) == (BATCH, LABELS, SIDE // 4, SIDE // 4)
        assert outputs.loss.item() > 0

    def test_binary_segmentation(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config.num_labels = 1
        outputs = classes.SegformerForSemanticSegmentation(config)(**inputs, labels=ids_tensor([BATCH, SIDE, SIDE], 2))
        assert outputs.loss.item() > 0

    def test_image_classification(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = classes.SegformerForImageClassification(config)(**inputs, labels=ids_tensor([BATCH], LABELS))
        assert tuple(outputs.logits.shape) == (BATCH, LABELS)
        outputs.loss.backward()


PICTURES = {"size": {"height": 30, "width": 30}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}

if IS_5:

    class SegformerImageProcessorTester(ImageProcessingTester):
        """Small pictures, and the class under test as the one backend."""

        def __init__(self, parent: unittest.TestCase, **kwargs: object) -> None:
            options = {"max_resolution": 80, "num_labels": LABELS, "do_reduce_labels": False}
            super().__init__(parent, **options, **PICTURES, **kwargs)

        def _get_image_processing_classes(self):
            return {"pil": Processor}

        def _get_valid_images_kwargs_keys(self):
            return {"size", "image_mean", "image_std", "do_reduce_labels"}

    class SegformerImageProcessorTest(
        ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase
    ):
        image_processor_tester_class = SegformerImageProcessorTester

else:

    class SegformerImageProcessorTester:
        """Small pictures, as the shared tests of transformers 4 ask for them."""

        batch_size, num_channels = BATCH, 3

        def expected_output_image_shape(self, images):
            return 3, 30, 30

        def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
            sides = {"min_resolution": 30, "max_resolution": 80, "equal_resolution": equal_resolution}
            return prepare_image_inputs(BATCH, num_channels=3, numpify=numpify, torchify=torchify, **sides)

    class SegformerImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
        image_processing_class = Processor

        def setUp(self) -> None:
            super().setUp()
            self.image_processor_tester = SegformerImageProcessorTester()
            self.image_processor_dict = {"do_resize": True, "do_reduce_labels": False, **PICTURES}
