"""Runs of a few steps, one after the other, in one of several processes: run.py {FOLDER: SETTINGS, …} [sharded]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common import make_trainer, shard

if __name__ == "__main__":
    if sys.argv[2:] == ["sharded"]:
        shard()
    for folder, settings in json.loads(sys.argv[1]).items():
        make_trainer(Path(folder), settings).train()
