"""The folder of wheels for machines without the internet: just what is missing, and pip needs nothing else."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "make_wheels.py"
OFFLINE = {**os.environ, "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def a_wheel(folder: Path, name: str, *needs: str) -> Path:
    """An empty package, version 1."""
    folder.mkdir(exist_ok=True)
    path, information = folder / f"{name}-1-py3-none-any.whl", f"{name}-1.dist-info"
    metadata = "".join(
        [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n", *(f"Requires-Dist: {n}\n" for n in needs)]
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{information}/METADATA", metadata)
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", f"{name}.py,,\n")
    return path


def make(*arguments: str, find: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**OFFLINE, **({"PIP_FIND_LINKS": str(find)} if find else {})}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)


def a_python(folder: Path, *, rest: bool) -> list[str]:
    """pip for a new environment, which sees the packages of this one where `rest`."""
    venv.create(folder, symlinks=True)
    if rest:
        site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
        (site_packages / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]


def test_only_what_is_missing_is_taken(tmp_path: Path) -> None:
    assert importlib.util.find_spec("absentpackage") is None
    wanted = a_wheel(tmp_path, "wantedpackage", "absentpackage", "numpy>=1")
    a_wheel(tmp_path / "index", "absentpackage")
    done = make(str(wanted), "--output", str(tmp_path / "wheels"), find=tmp_path / "index")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "wheels").iterdir()) == [
        "absentpackage-1-py3-none-any.whl",
        "wantedpackage-1-py3-none-any.whl",
    ]
    pip = a_python(tmp_path / "python", rest=True)
    install = [*pip, "install", "--quiet", "--no-index", "--find-links", str(tmp_path / "wheels"), "wantedpackage"]
    subprocess.run(install, check=True, env=OFFLINE)
    code = "import numpy, wantedpackage, absentpackage"
    subprocess.run([tmp_path / "python" / "bin" / "python", "-c", code], check=True)


def test_segtune_is_installed_from_the_wheels_of_a_checkout(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    done = make("--output", str(wheels))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 wheels, ")  # the environment of the tests has all that it needs
    pip = a_python(tmp_path / "python", rest=False)
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--find-links", str(wheels), "segtune[notebooks]"]
    subprocess.run(install, check=True, env=OFFLINE)
    code = "import segtune; print(segtune.__file__)"
    place = subprocess.check_output([tmp_path / "python" / "bin" / "python", "-c", code], text=True, cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(tmp_path / "python")


def test_what_cannot_be_found_is_told_without_a_traceback(tmp_path: Path) -> None:
    done = make("absentpackage", "--output", str(tmp_path / "wheels"))
    assert done.returncode == 1
    assert "absentpackage" in done.stderr and "make_wheels: pip failed" in done.stderr
    assert "Traceback" not in done.stderr
