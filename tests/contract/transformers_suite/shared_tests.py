"""transformers' shared test classes, out of its source distribution; imported only by the suite's own processes.

The source distribution holds `tests/test_*_common.py`, but neither the tests of single models nor some modules that the
shared ones import. The few names of those that matter here are stood in for.
"""

from __future__ import annotations

import os
import sys
import types

sys.path.insert(0, os.environ["SUITE_FOLDER"])  # holds `tests` and `parameterized`


def _stand_in(name: str, **names: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(names, __path__=[])
    sys.modules[name] = module


def _no_file(url: str) -> str:
    raise OSError(f"{url}: the suite runs without a network")


for package in ("tests.exporters", "tests.generation", "tests.utils"):
    _stand_in(package)
_stand_in("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
_stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
_stand_in("tests.utils.test_configuration_utils", config_common_kwargs={})
_stand_in("fetch_hub_objects_for_ci", url_to_local_path=_no_file)

from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_image_processing_common import ImageProcessingTestMixin, prepare_image_inputs  # noqa: E402

try:
    from tests.test_image_processing_common import ImageProcessingTester, PostProcessSemanticSegmentationTestMixin
except ImportError:  # transformers 4
    ImageProcessingTester = PostProcessSemanticSegmentationTestMixin = None
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor  # noqa: E402

__all__ = [
    "ConfigTester",
    "ImageProcessingTestMixin",
    "ImageProcessingTester",
    "ModelTesterMixin",
    "PostProcessSemanticSegmentationTestMixin",
    "floats_tensor",
    "ids_tensor",
    "prepare_image_inputs",
]
