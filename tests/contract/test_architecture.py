"""The order of the house: who may import whom, which package is used where, and no work at import time.

Everything is read from the syntax tree, imports inside functions included; nothing is imported here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "segtune"

# A package (or a module at the top) imports from a lower line, or from itself; those of one line do not see each other.
LAYERS = [
    "errors",
    "bars config files hub_errors",
    "labels evaluation",
    "segformer",
    "engines imageio",
    "data",
    "viz",
    "inference",
    "training export",
    "hub report selection",
    "recipe",
    "doctor experiments finetune pretraining webdemo",
    "proposal",
    "cli",
    "__main__",
]
# Packages that may change under us, and the only places that touch them.
FENCES = {
    "accelerate": {"training"},
    "albumentations": {"data.augmentations"},
    "av": {"imageio.video"},
    "click": {"cli.main"},
    "coremltools": {"export"},
    "cv2": {"data.augmentations"},
    "datasets": {"data"},
    "evaluate": {"evaluation.metrics"},
    "fastapi": {"webdemo.server"},
    "gradio": {"webdemo.blocks"},
    "fsspec": {"imageio.object_store"},
    "h5py": {"segformer.originals.hdf5"},
    "huggingface_hub": {
        "hub",
        "hub_errors",
        "data.containment",
        "data.convert.dataset_card",
        "data.formats.hub_parquet",
    },
    "onnx": {"engines", "export"},
    "onnxruntime": {"engines", "export"},
    "onnxscript": {"engines"},
    "openvino": {"engines", "export"},
    "jinja2": {"doctor", "hub", "report", "viz.html"},
    "nibabel": {"imageio.medical"},
    "nncf": {"export.quantize"},
    "optuna": {"experiments.study"},
    "peft": {"training.lora"},
    "psutil": {"training.distributed", "training.interrupts"},
    "pycocotools": {"data.annotations.shapes"},
    "pydicom": {"imageio.medical"},
    "rasterio": {"imageio.geotiff"},
    "ray": {"inference.parallel.ray_data"},
    "rich": {"viz.terminal"},
    "scipy": {"evaluation", "labels.distance_maps"},
    "shapely": {"inference.polygons"},
    "torchvision": set(),
    "tqdm": {"bars"},
    "triton": {"segformer.triton_kernels"},
    "typer": {"cli"},
    "uvicorn": {"webdemo.server"},
    "yaml": {"data.formats", "hub", "recipe"},
}
TYPES_ANYWHERE = {"datasets"}  # may be named in annotations, under `if TYPE_CHECKING`
HUB_CODE = {  # copied to the Hub beside the weights: besides these and the standard library, nothing
    "segformer.configuration_segformer": {"transformers"},
    "segformer.modeling_segformer": {
        "torch",
        "transformers",
        "segformer.configuration_segformer",
        "segformer.cpu_products",
        "segformer.cross_entropy",
        "segformer.fused",
        "segformer.fused_decode_head",
        "segformer.loading_report",
        "segformer.parameter_names",
        "segformer.triton_kernels",
        "segformer.upsampling",
    },
    "segformer.cpu_products": {"torch"},
    "segformer.fused": {"torch", "transformers", "segformer.cpu_products", "segformer.upsampling"},
    "segformer.fused_decode_head": {
        "torch",
        "segformer.cpu_products",
        "segformer.fused",
        "segformer.upsampling",
    },
    "segformer.loading_report": {"torch"},
    "segformer.image_processing_segformer": {
        "numpy",
        "PIL",
        "torch",
        "transformers",
        "segformer.triton_kernels",
        "segformer.upsampling",
    },
    "segformer.cross_entropy": {"torch", "segformer.triton_kernels", "segformer.upsampling"},
    "segformer.triton_kernels": {"torch", "triton"},
    "segformer.upsampling": {"torch", "segformer.triton_kernels"},
}
OPTIONAL = {  # of an extra; imported where it is used
    "av",
    "coremltools",
    "fastapi",
    "gradio",
    "h5py",
    "nibabel",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "optuna",
    "peft",
    "pycocotools",
    "pydicom",
    "rasterio",
    "ray",
    "shapely",
    "triton",
    "uvicorn",
}
DISTRIBUTIONS = {
    "pyarrow": "datasets",
    "fsspec": "huggingface_hub",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
}  # where they have other names
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
WORK_AT_IMPORT = {
    "data.augmentations": {"os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')"},
    "segformer.cross_entropy": {"_cross_entropy.register_autograd(_scale_gradient, setup_context=_keep_gradient)"},
}


@dataclass(frozen=True)
class Import:
    module: str  # who imports, below segtune; "__init__" for the package itself
    target: str  # a module of ours (below segtune), or the top-level name of another package
    ours: bool
    types_only: bool
    relative: bool
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def is_package(module: str) -> bool:
    return PACKAGE.joinpath(*module.split("."), "__init__.py").is_file()


def is_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def walk_imports(node: ast.AST, types_only: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, types_only
        yield from walk_imports(child, types_only or is_types_only(child))


def targets(module: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The absolute dotted names that a statement imports; of `from a import b`, a.b where that is a module of ours."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        inside = ["segtune", *([] if module == "__init__" else module.split("."))]
        package = inside if module == "__init__" or is_package(module) else inside[:-1]
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
    for alias in node.names:
        full = f"{base}.{alias.name}"
        yield full if full.removeprefix("segtune.") in TREES else base


def imports_of(module: str) -> Iterator[Import]:
    for node, types_only in walk_imports(TREES[module]):
        for name in targets(module, node):
            top, _, rest = name.partition(".")
            ours = top == "segtune"
            target = (rest or "__init__") if ours else top
            relative = isinstance(node, ast.ImportFrom) and node.level > 0
            yield Import(module, target, ours, types_only, relative, node.lineno)


IMPORTS = [found for module in TREES for found in imports_of(module)]
OURS = [found for found in IMPORTS if found.ours]
THIRD_PARTY = [found for found in IMPORTS if not found.ours and found.target not in sys.stdlib_module_names]


BROAD = {"Exception", "BaseException"}
LEVEL = {package: number for number, line in enumerate(LAYERS) for package in line.split()}


def package_of(module: str) -> str:
    return module.partition(".")[0]


def is_inside(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def upward(imports: list[Import]) -> list[str]:
    """The imports of ours that go neither to a lower line nor stay in their package."""
    return [
        f"{found.module}:{found.line} imports {found.target}"
        for found in imports
        if found.module != "__init__"
        and found.target != "__init__"
        and package_of(found.module) != package_of(found.target)
        and LEVEL[package_of(found.target)] >= LEVEL[package_of(found.module)]
    ]


def test_reader_found_the_package() -> None:
    assert len(TREES) >= 20
    assert len(OURS) >= 40
    assert {"torch", "transformers", "datasets", "albumentations", "evaluate"} <= {
        found.target for found in THIRD_PARTY
    }
    assert any(found.relative for found in OURS)
    assert any(found.types_only for found in IMPORTS)


def test_layers_name_every_package_and_no_other() -> None:
    placed = [package for line in LAYERS for package in line.split()]
    assert len(LAYERS) <= 15
    assert len(placed) == len(set(placed))
    assert set(placed) == {package_of(module) for module in TREES} - {"__init__"}


def test_imports_go_down() -> None:
    assert upward(OURS) == []


@pytest.mark.parametrize(
    ("module", "target", "is_upward"),
    [
        ("data.loader", "training.trainer", True),
        ("labels.label_map", "segformer.loading", True),
        ("report.page", "hub.push", True),  # of one line
        ("training.trainer", "data.loader", False),
        ("data.loader", "data.formats.coco", False),
    ],
)
def test_an_upward_import_is_told(module: str, target: str, is_upward: bool) -> None:
    planted = Import(module, target, ours=True, types_only=False, relative=False, line=1)
    assert bool(upward([*OURS, planted])) == is_upward


# --- the page that says so --------------------------------------------------------------------------------------------

PAGE = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_page_shows_the_layers_and_every_package() -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert shown.splitlines() == LAYERS[::-1]
    table = PAGE.split("## Packages")[1].split("## Order")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert listed == [package for line in LAYERS[:-1] for package in line.split()]


def test_page_names_what_exists() -> None:
    packages = {package for line in LAYERS for package in line.split()}
    named = {name for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", PAGE) if package_of(name) in packages}
    assert len(named) >= 30
    assert sorted(name for name in named if not exists(name)) == []
    assert not exists("data.samples.no_such_name") and not exists("data.nothing")
    files = [name for name in re.findall(r"`(\w+/[\w./]+\.py)`", PAGE) if name.split("/")[0] in packages]
    assert len(files) >= 6 and [name for name in files if not (PACKAGE / name).is_file()] == []


def exists(name: str) -> bool:
    """Whether a dotted name is a module of ours, or a function, a class or a method in one."""
    module = max((known for known in TREES if is_inside(name, {known})), key=len, default=None)
    if module is None:
        return False
    body: Sequence[ast.stmt] = TREES[module].body
    for part in name.removeprefix(module).split(".")[1:]:
        found = [node for node in body if isinstance(node, DEFINITIONS) and node.name == part]
        if not found:
            return False
        body = found[0].body
    return True


def test_fences_stand_where_there_is_something() -> None:
    places = set.union(*FENCES.values())
    assert {place for place in places if not any(is_inside(module, {place}) for module in TREES)} == set()


def test_package_itself_imports_nothing_when_it_is_imported() -> None:
    lazy = [found for found in IMPORTS if found.module == "__init__" and not found.types_only]
    assert {found.target for found in lazy} == {"__future__", "importlib"}
    inits = [name for name in TREES if is_package(name)]
    assert len(inits) >= 2
    assert [found for found in IMPORTS if found.module in inits] == []


def test_modules_take_only_the_version_from_the_package_itself() -> None:
    """`segtune.predict` inside the package would load any layer from any other."""
    taken = {
        name for module, tree in TREES.items() for node in ast.walk(tree) for name in names_from_package(module, node)
    }
    assert taken <= {"__version__"}


def names_from_package(module: str, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "segtune":
        return [node.attr]
    if isinstance(node, ast.ImportFrom) and list(targets(module, node)) == ["segtune"]:
        return [alias.name for alias in node.names]
    return []


def test_a_module_is_found_by_its_name() -> None:
    """A name stands for one module, and a folder can be read at a glance."""
    files = [path for path in PACKAGE.rglob("*.py") if path.stem not in {"__init__", "config", "page"}]
    names = Counter(path.stem for path in files)
    assert {name for name, count in names.items() if count > 1} == set()
    folders = Counter(path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    assert folders["."] <= 8
    assert {folder for folder, count in folders.items() if count > 17} == set()


def test_whatever_goes_wrong_is_caught_in_few_places() -> None:
    """A bug must read as a bug: where libraries raise what they like, beside or after a run, for a page, at the top."""
    broad = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) in BROAD)
    }
    assert broad <= {
        "cli.main",
        "files",
        "finetune",
        "hub.push",
        "imageio.read",
        "training.teachers.teacher",
        "webdemo.blocks",
    }  # files raises it again


def test_pages_are_templates() -> None:
    """What is put into HTML is escaped by Jinja2: no tag stands in a string that Python puts together."""
    tag = re.compile(
        r"</?(a|article|b|button|code|details|div|figure|h[1-6]|img|li|p|path|script|span|svg|t[dhr]|ul)\b[^<]*>"
    )
    made = {
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) and tag.search(ast.unparse(node))
    }
    assert made == set()


def test_no_cycles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in TREES}
    for found in OURS:
        if found.module != "__init__" and found.target != found.module:
            graph[found.module].add(found.target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("package", sorted(FENCES))
def test_fence(package: str) -> None:
    outside = [
        f"{found.module}:{found.line}"
        for found in THIRD_PARTY
        if found.target == package
        and not is_inside(found.module, FENCES[package])
        and not (found.types_only and package in TYPES_ANYWHERE)
    ]
    assert outside == []


@pytest.mark.parametrize("module", sorted(HUB_CODE))
def test_hub_code_stands_alone(module: str) -> None:
    found = [item for item in IMPORTS if item.module == module and item.target not in sys.stdlib_module_names]
    assert found
    assert {item.target for item in found} <= HUB_CODE[module]
    assert all(item.relative for item in found if item.ours)  # the Hub's loader follows `from .name import x` only


@pytest.mark.parametrize("module", ["segformer.modeling_segformer", "segformer.image_processing_segformer"])
def test_hub_code_names_what_its_neighbours_need(module: str) -> None:
    """From a folder, transformers 4 copies the files that the first one names, and none that only those name."""
    ours = {name: {item.target for item in IMPORTS if item.module == name and item.ours} for name in TREES}
    assert ours[module]
    assert {target for name in ours[module] for target in ours[name]} <= ours[module]


def test_packages_are_declared() -> None:
    required = [Requirement(line) for line in requires("segtune") or []]
    declared = {item.name.lower().replace("_", "-") for item in required if "extra" not in str(item.marker)}
    extras = {item.name.lower() for item in required if "extra" in str(item.marker)}
    assert len(declared) >= 12
    used = {DISTRIBUTIONS.get(found.target, found.target).lower().replace("_", "-") for found in THIRD_PARTY}
    assert used - declared == OPTIONAL and extras >= OPTIONAL


def test_modules_do_no_work_when_imported() -> None:
    """At the top of a module nothing is called or assigned to change what the module did not make itself."""
    for module, tree in TREES.items():
        effects = {ast.unparse(node) for node in top_level(tree) if has_effect(node, own_things(tree))}
        assert effects <= WORK_AT_IMPORT.get(module, set()), module


@pytest.mark.parametrize(
    ("code", "flagged"),
    [
        ("import os\nos.environ['A'] = '1'", True),
        ("import os\nos.environ.setdefault('A', '1')", True),
        ("import logging\ntry:\n    logging.basicConfig()\nfinally:\n    pass", True),
        ("import logging\nlogger = logging.getLogger('x')\nlogger.setLevel(10)", True),
        ("import torch\nclass A:\n    torch.manual_seed(0)", True),
        ("import os\ndef f():\n    os.environ['A'] = '1'", False),
        ("class A:\n    'Doc.'\n    x: int = 1\nA.register()", False),
        ("import typer\napp = typer.Typer()\napp.add_typer(app)", False),
        ("if __name__ == '__main__':\n    main()", False),
    ],
)
def test_effects_are_recognised(code: str, flagged: bool) -> None:
    tree = ast.parse(code)
    assert any(has_effect(node, own_things(tree)) for node in top_level(tree)) == flagged


def top_level(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements that run on import: not those in functions, nor under `if __name__ == "__main__"`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.expr):
            continue
        if isinstance(child, ast.If) and "__name__" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.stmt):
            yield child
        yield from top_level(child)


def own_things(tree: ast.Module) -> set[str]:
    """The classes a module defines, the objects it makes (`app = Typer(…)`), the variables of loops over these."""
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in top_level(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made_by = ast.unparse(node.value.func).rpartition(".")[2]
            own |= {ast.unparse(target) for target in node.targets} if made_by[:1].isupper() else set()
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            own |= {ast.unparse(node.target)} if {ast.unparse(item) for item in node.iter.elts} <= own else set()
    return own


def has_effect(node: ast.stmt, own: set[str]) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return False  # a docstring or `...`
    if isinstance(node, ast.Expr):
        return not (isinstance(node.value, ast.Call) and is_method_of(node.value.func, own))
    if isinstance(node, ast.Assign | ast.Delete):
        return any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.AugAssign) and not isinstance(node.target, ast.Name)


def is_method_of(function: ast.expr, own: set[str]) -> bool:
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in own
