"""Run transformers' shared model and processor tests on its own SegFormer and on segtune's, and compare.

    python tests/contract/transformers_suite/suite.py

fetches the tests of the installed version with pip (once, into build/), runs them on both, and prints what passed,
what failed and why that is not ours. Exit code 1 where something fails that ALLOWED does not explain.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import transformers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FOLDER = ROOT / "build" / "transformers_suite" / transformers.__version__

# Failures that are not ours, each with its reason. Those of "both" are the suite's; transformers' own class has them.
ALLOWED = {
    "both": {
        "test_new_models_require_torchvision_backend": "takes the folder of the test for the name of a new model",
    },
    "segtune": {
        "test_can_load_ignoring_mismatched_shapes": "looks for transformers' wording in the log; ours is one line",
        "test_config": "transformers 4 asks for a network of 0 stages, which ours refuses",
        "test_image_processor_save_load_with_autoimageprocessor": "compares a list with an equal tuple, of two classes",
        "test_initialization": "convolutions begin as in He et al. 2015, like the authors'",
        "test_mismatched_shapes_have_properly_initialized_weights": "looks for transformers' wording as well",
    },
}


def fetched() -> bool:
    """Whether the tests of this version lie here."""
    return (FOLDER / "parameterized").is_dir() and (FOLDER / "tests" / "test_modeling_common.py").is_file()


def fetch() -> None:
    """Get the tests out of transformers' source distribution, and the one package that they need."""
    pip = [sys.executable, "-m", "pip"]
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"transformers=={transformers.__version__}"
        command = [*pip, "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder, wanted]
        subprocess.run(command, check=True)
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as tar:
            top = tar.getnames()[0].split("/")[0]
            tar.extractall(folder, [m for m in tar if m.name.startswith(f"{top}/tests/")], filter="data")
        FOLDER.mkdir(parents=True, exist_ok=True)
        (Path(folder) / top / "tests" / "__init__.py").touch()
        (Path(folder) / top / "tests").replace(FOLDER / "tests")
    target = ["--target", str(FOLDER), "parameterized"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", *target], check=True)


def run(classes: str) -> dict[str, tuple[str, str]]:
    """Run all cases in a process of their own.

    Args:
        classes: whose: "transformers" or "segtune".

    Returns:
        For each test, "passed", "failed" or "skipped", and the message.

    Raises:
        RuntimeError: the tests could not be run; with the end of what was printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        environment = {
            **os.environ,
            "SUITE_FOLDER": str(FOLDER),
            "SUITE_CLASSES": classes,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(HERE)]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}", str(HERE / "cases.py")]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"the suite did not run:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
        results: dict[str, tuple[str, str]] = {}
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            name, outcome, message = case.get("name", ""), "passed", ""
            for child in case:
                outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}.get(child.tag, outcome)
                message = child.get("message") or message
            if results.get(name, ("passed",))[0] != "failed":  # a failed part of a test is a failed test
                results[name] = (outcome, " ".join(message.split())[:200])
        return results


def unexplained(results: dict[str, tuple[str, str]], classes: str) -> dict[str, str]:
    """The failed tests that ALLOWED does not name, with their messages."""
    allowed = {**ALLOWED["both"], **ALLOWED.get(classes, {})}
    return {name: text for name, (outcome, text) in results.items() if outcome == "failed" and name not in allowed}


def summary(results: dict[str, tuple[str, str]], classes: str) -> str:
    """Counts, and a line for each failure: its reason, or its message where it has none."""
    counts = Counter(outcome for outcome, _ in results.values())
    lines = [f"{classes}: " + ", ".join(f"{counts[key]} {key}" for key in ("passed", "failed", "skipped"))]
    allowed = {**ALLOWED["both"], **ALLOWED.get(classes, {})}
    for name, (outcome, message) in sorted(results.items()):
        if outcome == "failed":
            lines.append(f"  {name}: {'not ours: ' + allowed[name] if name in allowed else message}")
    return "\n".join(lines)


def main() -> int:
    if not fetched():
        fetch()
    wrong = 0
    for classes in ("transformers", "segtune"):
        results = run(classes)
        print(f"tests of transformers {transformers.__version__} on {summary(results, classes)}", flush=True)
        wrong += len(unexplained(results, classes))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
