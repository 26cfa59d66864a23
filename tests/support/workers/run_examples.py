"""Runs the examples of pages, one after the other, as users would, but without importing PyTorch for each.

    python run_examples.py EXAMPLES.json CHECKOUT

The file is a list of [page, kind, example]: of kind "python" a piece of code, which sees the names of those before it
on the same page; of kind "bash" the words of a command. segtune's commands and the checkout's scripts run in this
process; `accelerate launch` starts its own.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from segtune.cli.main import main
from segtune.webdemo.server import DemoServer

_ENVIRONMENT = dict(os.environ)  # before a training adds to it


def wait(server: DemoServer) -> None:
    """`segtune demo` ends as soon as its page has been asked for."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    direct.open(server.url, timeout=60).close()


def run_command(words: list[str]) -> None:
    if words[0] == "accelerate":
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
        subprocess.run([*launcher, *words[1:]], env=_ENVIRONMENT, check=True)
        return
    try:
        if words[0] == "python":
            script(words[1]).main(words[2:])
        else:
            assert words[0] == "segtune"
            main(words[1:])
    except SystemExit as left:
        if left.code and not (left.code == 1 and "doctor" in words):  # which has found something
            sys.exit(f"exit code {left.code}")


def script(path: str) -> Any:
    """A script of the checkout. Of its measurements that take processes of their own, the first one gets it."""
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    in_fresh_process = getattr(module, "_in_fresh_process", None)
    done: list[str] = []

    def first_one_alone(job: dict[str, Any]) -> str:
        if not done:
            done.append(in_fresh_process(job))
            return done[0]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            module.main(["--job", json.dumps(job)])
        return said.getvalue().splitlines()[-1]

    if in_fresh_process and in_fresh_process.__module__ == module.__name__:
        module._in_fresh_process = first_one_alone
    return module


if __name__ == "__main__":
    examples, checkout = sys.argv[1:]
    sys.path.append(checkout)
    DemoServer.wait = wait  # type: ignore[method-assign]
    names: dict[str, dict[str, Any]] = {}
    for page, kind, example in json.loads(Path(examples).read_text(encoding="utf-8")):
        print(page, example, file=sys.stderr, flush=True)
        if kind == "python":
            exec(compile(example, page, "exec"), names.setdefault(page, {}))
        else:
            run_command(example)
