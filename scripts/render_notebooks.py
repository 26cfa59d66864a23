"""Run the notebooks and write what they show into docs/notebooks: a page of Markdown for each, and its pictures.

    python scripts/render_notebooks.py --python PYTHON [--segtune WHEEL] [--set NAME=VALUE …] [notebook …]

PYTHON is that of an environment with ipykernel and without segtune. Each notebook runs there in an empty folder, from
its own install cell on, and segtune is uninstalled after it. WHEEL stands in for the repository that the install cell
names, as before a release. `--set STEPS=20` changes a setting of the cell of parameters; the page says so. The
notebooks themselves stay without outputs.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import MarkdownExporter
from nbconvert.filters import strip_ansi
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
WIDEST, LARGEST = 900, 150_000  # pixels and bytes of a picture
HAS_SEGTUNE = "import importlib.util, sys; sys.exit(importlib.util.find_spec('segtune') is not None)"
VERSIONS = """
import platform, segtune, torch
where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"threads of the CPU: {torch.get_num_threads()}"
pytorch = torch.__version__.partition("+")[0]
print(f"segtune {segtune.__version__}, PyTorch {pytorch}, Python {platform.python_version()}, {where}")
"""
BAR = re.compile(r"\d+%\|.*\| \d+/\d+ \[.*\]$")
WIDGET = "application/vnd.jupyter.widget-view+json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", metavar="notebook", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--python", type=Path, required=True, help="the interpreter that runs them")
    parser.add_argument("--segtune", type=Path, metavar="WHEEL", help="install this instead of the repository")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the cell of parameters")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "notebooks", help="(default: docs/notebooks)")
    given = parser.parse_args()
    python = given.python.absolute()  # not resolved: the link in a virtual environment is what makes it one
    if unknown := set(given.notebooks) - set(NAMES):
        parser.error(f"no notebook {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    if subprocess.run([python, "-c", HAS_SEGTUNE], cwd=python.parent, env=variables(python)).returncode:
        parser.error(f"{given.python} has segtune already (or does not run): give an environment without it")
    for name in given.notebooks or NAMES:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        settings = [line for line in given.set if line.partition("=")[0] in parameters(notebook)]
        print(f"{name}: running", *settings, flush=True)
        try:
            ran, versions = executed(notebook, python, given.segtune, settings)
        except CellExecutionError as error:
            print(f"render_notebooks: {name} failed\n{strip_ansi(str(error))}", file=sys.stderr)
            return 1
        write_page(ran, name, about(name, versions, settings), given.output)
    return 0


def variables(python: Path) -> dict[str, str]:
    """The environment of the kernel: its own programs first, and no checkout to import from."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return {**kept, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}


# --- running ---------------------------------------------------------------------------------------------------------


def parameters(notebook: Any) -> set[str]:
    """The names that the cell of parameters sets."""
    return set(re.findall(r"^(\w+) = ", parameter_cell(notebook).source, flags=re.MULTILINE))


def parameter_cell(notebook: Any) -> Any:
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def executed(notebook: Any, python: Path, wheel: Path | None, settings: list[str]) -> tuple[Any, str]:
    """Run a notebook.

    Args:
        notebook: as it is in git.
        python: the interpreter of the kernel.
        wheel: what the install cell takes in place of the repository; None: the repository.
        settings: lines `NAME=VALUE` that follow the parameters.

    Returns:
        The same cells with their outputs, and a line that names versions and machine.

    Raises:
        CellExecutionError: a cell failed.
    """
    changed = copy.deepcopy(notebook)
    if wheel is not None:
        install = next(cell for cell in changed.cells if cell.cell_type == "code")
        here = rf'SEGTUNE = "{wheel.resolve()}\1"'
        install.source, count = re.subn(r'SEGTUNE = "segtune(\[.*\]) @ .*?"', here, install.source)
        assert count == 1
    parameter_cell(changed).source += "".join(f"\n{line}" for line in settings)
    with tempfile.TemporaryDirectory(prefix="notebook-") as place:
        kernel = Path(place) / "jupyter" / "kernels" / "chosen" / "kernel.json"
        kernel.parent.mkdir(parents=True)
        command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel.write_text(json.dumps({"argv": command, "display_name": "chosen", "language": "python"}))
        os.environ["JUPYTER_PATH"] = str(Path(place) / "jupyter")
        folder = Path(place, "work").resolve()
        folder.mkdir()
        resources = {"metadata": {"path": str(folder)}}
        client = NotebookClient(changed, timeout=3600, kernel_name="chosen", resources=resources, coalesce_streams=True)
        try:
            client.execute(env=variables(python))
            versions = subprocess.check_output([python, "-c", VERSIONS], cwd=folder, env=variables(python), text=True)
        finally:
            uninstall = [python, "-m", "pip", "uninstall", "--quiet", "--yes", "segtune"]
            subprocess.run(uninstall, cwd=place, env=variables(python), check=True)
    for cell, ran in zip(notebook.cells, changed.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs = [shown for output in ran.outputs if (shown := as_shown(output, folder, python.parents[1]))]
    next(cell for cell in notebook.cells if cell.cell_type == "code").outputs = []  # pip's lines, of one machine
    notebook.metadata.language_info = changed.metadata.language_info
    return notebook, versions.strip()


def as_shown(output: Any, *folders: Path) -> Any:
    """An output as a page shows it, paths relative to folders; None where it shows nothing: bars, lines of the log."""
    if output.output_type == "stream":
        text = strip_ansi(output.text).replace("\r\n", "\n")
        for folder in folders:
            text = text.replace(f"{folder}{os.sep}", "")
        lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]  # what was drawn over is gone
        output.text = "\n".join(line for line in lines if not BAR.search(line))
        return output if output.name == "stdout" and output.text.strip() else None
    if WIDGET in output.data:
        return None
    for kind in ("image/png", "image/jpeg"):
        if kind in output.data:
            output.data = {"image/png": base64.b64encode(picture(base64.b64decode(output.data[kind]))).decode()}
            break
    return output


def picture(data: bytes) -> bytes:
    """A PNG with a palette, of at most WIDEST pixels and, with fewer colours and pixels if need be, LARGEST bytes."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((WIDEST, image.height))
    for colors in (256, 128, 64, 32):
        file = io.BytesIO()
        few = image.quantize(colors, method=Image.Quantize.MAXCOVERAGE, kmeans=2)  # keeps the rare colours of a scale
        few.save(file, "PNG", optimize=True)
        if file.tell() <= LARGEST:
            return file.getvalue()
    image.thumbnail((image.width * 3 // 4, image.height))
    file = io.BytesIO()
    image.save(file, "PNG")
    return picture(file.getvalue())


# --- the page --------------------------------------------------------------------------------------------------------


def about(name: str, versions: str, settings: list[str]) -> str:
    """The paragraph under the title: where the notebook is, and what the outputs came from."""
    link = f"[{name}.ipynb](https://github.com/segtune/segtune/blob/main/notebooks/{name}.ipynb)"
    changed = f" Settings changed for this page: `{', '.join(settings)}`." if settings else ""
    return f"*{link} and its outputs, with {versions}; `scripts/render_notebooks.py` made this page.*{changed}"


def without_badges(source: str) -> str:
    """Badges are pictures that others serve: on the page, their texts are the links."""
    return re.sub(r"\[!\[([^]]+)\]\([^)]+\)\]", r"[\1]", source)


def write_page(notebook: Any, name: str, note: str, output: Path) -> None:
    """Write `NAME.md` and the pictures in `NAME_files` into a folder."""
    title, _, rest = without_badges(notebook.cells[0].source).partition("\n\n")
    notebook.cells[0].source = f"{title}\n\n{note}\n\n{rest}"
    resources = {"unique_key": name, "output_files_dir": f"{name}_files"}
    body, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    headings, current = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+ (?:\d+\. )?(.+)$", cell.source, flags=re.MULTILINE)
            current = found[-1] if found else current
        headings.append(current)
    body = re.sub(r"!\[png\]\((.+_(\d+)_\d+\.png)\)", lambda m: f"![{headings[int(m[2])]}]({m[1]})", body)
    shutil.rmtree(output / f"{name}_files", ignore_errors=True)
    (output / f"{name}_files").mkdir(parents=True)
    for path, data in resources["outputs"].items():
        (output / path).write_bytes(data)
    (output / f"{name}.md").write_text("\n".join(line.rstrip() for line in body.splitlines()).strip() + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
