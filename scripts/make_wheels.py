"""A folder of wheels with which pip installs segtune where there is no internet, such as a Kaggle competition.

    python scripts/make_wheels.py [--output wheels] [requirement]

Run it with the Python that will install them, with the internet on: it asks pip what is missing there (torch, CUDA and
whatever else is installed already are left out) and makes wheels of just that. Without a requirement, of the checkout
that the script lies in, with the extra `notebooks`. Then, without the internet:

    pip install --no-index --find-links wheels "segtune[notebooks]"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CHECKOUT = f"{Path(__file__).resolve().parents[1]}[notebooks]"


def missing(requirement: str) -> list[str]:
    """What pip would install for a requirement, segtune apart, as `name==version`."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", requirement]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found = [entry["metadata"] for entry in report["install"]]
    return [f"{one['name']}=={one['version']}" for one in found if one["name"] != "segtune"]


def make(requirement: str, output: Path) -> list[Path]:
    """Fill the folder; returns the wheels that lie there."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(output)]
    subprocess.run([*build, requirement, *missing(requirement)], check=True)
    return sorted(output.glob("*.whl"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requirement", nargs="?", default=CHECKOUT, help="what to install, as for pip")
    parser.add_argument("--output", type=Path, default=Path("wheels"), help="the folder (default: wheels)")
    arguments = parser.parse_args()
    try:
        wheels = make(arguments.requirement, arguments.output)
    except subprocess.CalledProcessError as error:
        print(f"make_wheels: pip failed, see above: {' '.join(error.cmd[2:5])} …", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.1f} MB, in {arguments.output}:", *(path.name for path in wheels), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
