"""`segtune push` and `segtune convert`: to the Hub, and from the checkpoints of others."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from segtune.cli.common import hide_bars_of_libraries, importing, say
from segtune.errors import DataError, UsageError


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its best/ or final/.")],
    repo: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="By default that of the recipe, or the folder's name.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Where the repository does not exist yet.")] = False,
    branch: Annotated[str | None, typer.Option(help="Made where it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Push as a pull request.")] = False,
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Add the network's code, for trust_remote_code=True.")
    ] = False,
    license: Annotated[str | None, typer.Option(help="Of weights that inherit none, e.g. apache-2.0.")] = None,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Leave out pictures of the data.")] = False,
    space: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Then make this Space, which shows the run as segtune demo.")
    ] = None,
) -> None:
    """Push a run to the Hub: the best weights, a model card, the recipe, metrics, report and overlays."""
    from pydantic import ValidationError

    from segtune.hub.config import HubConfig

    given = {"repo": repo, "private": private, "branch": branch, "with_code": with_code, "license": license}
    settings = {key: value for key, value in given.items() if value}
    for named, values in (("", settings), ("space", {"repo": space})):
        try:
            HubConfig(**values)
        except ValidationError as error:
            faults = (f"--{named or item['loc'][0]}: {item['msg']}" for item in error.errors())
            raise UsageError("; ".join(faults)) from error
    if space and create_pr:
        raise UsageError("--space shows what the repository holds: give it without --create-pr, once that is merged")
    if space:
        from segtune.hub.space import push_space, requirements

        requirements()  # what is missing is told before anything is sent
    with importing():
        from segtune.hub.push import push_run

    url = push_run(run, create_pr=create_pr, **settings, **({"pictures": False} if no_pictures else {}))
    say(f"pushed {run} to {url}")
    if space:
        shown = push_space(run, space, url, branch=branch, pictures=not no_pictures)
        say(f"made the Space {shown}")


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A checkpoint of mmseg, NVlabs/SegFormer, LibreYOLO or keras-hub.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder that does not exist yet.")],
    layout: Annotated[
        str, typer.Option("--from", help="keras, libreyolo, mmseg, nvlabs, or auto: by the names in the file.")
    ] = "auto",
    encoder_only: Annotated[bool, typer.Option("--encoder-only", help="Leave the decode head out.")] = False,
    license: Annotated[
        str | None, typer.Option(help="Of weights that did not start from published ones, e.g. apache-2.0.")
    ] = None,
) -> None:
    """Write a checkpoint of others as ours: weights, config, image processor and a card that states the licence."""
    from segtune.segformer.originals import LAYOUTS

    if layout not in LAYOUTS:
        raise UsageError(f"--from {layout}: one of {', '.join(LAYOUTS)}")
    if not source.exists():
        raise DataError(f"{source}: no such file")
    if output.exists():
        raise UsageError(f"{output} exists already: name a folder that does not")
    from segtune.segformer.originals.convert_originals import convert_original

    hide_bars_of_libraries()
    done = convert_original(source, output, layout, encoder_only=encoder_only, license=license)
    model = done.model
    labels = f", {model.config.num_labels} labels" if hasattr(model, "decode_head") else ""
    say(f"{output}: {type(model).__name__}{labels}, {model.num_parameters() / 1e6:.1f} million parameters")
    for part in done.source.described_left_out():
        say(f"left out: {part}")
    if not done.source.processor:
        say("pictures: normalised as ImageNet's; the checkpoint does not say how")
    say(f"licence: {done.terms} (README.md says why)")
    say(f"next: segtune train RECIPE model.name={shlex.quote(str(output))}")
