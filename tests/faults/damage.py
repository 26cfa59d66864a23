"""Damaged files: each file of a run, in several ways, and each command that reads it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from faults import forks
from faults.forks import Ended
from faults.workplace import Case, Verdict, Workplace, differences, files_of, train_words
from faults.writers import LONG, WRITERS, unlike, written, written_folder

TEXTS = (".yaml", ".json", ".jsonl", ".html")

EVALUATE = ["plain/recipe.yaml", "--split", "val"]
COMMANDS: dict[str, list[str]] = {
    "resume": train_words("plain", "plain", "training.resume=auto"),
    "evaluate": ["evaluate", "plain/best", *EVALUATE],
    "evaluate final": ["evaluate", "plain/final", *EVALUATE],
    "predict": ["predict", "plain/best", "data/images/test", "--output", "masks"],
    "report": ["report", "plain", "--output", "page.html"],
    "compare": ["compare", "plain/evaluation-val.npz", "other.npz"],
    "doctor": ["doctor", "plain/recipe.yaml", "--checkpoint", "plain/best"],
    "go on elsewhere": train_words("plain", "run", "model.name=plain/best", "training.max_steps=1"),
    "label": WRITERS["label"].words,
    "select": WRITERS["select"].words,
    "soup": WRITERS["soup"].words,
    "ensemble": WRITERS["ensemble"].words,
    "teacher": train_words("plain", "run", "training.distill={teacher: plain/best}", "training.max_steps=1"),
}
# what each reads, besides states, which only `resume` does
READS = {
    "resume": r".*",
    "evaluate": r"best/.*|recipe\.yaml|split\.json",
    "evaluate final": r"final/.*",
    "predict": r"best/.*",
    "report": r"best/.*|recipe\.yaml|split\.json|metrics\.jsonl|evaluation-val\.npz",
    "compare": r"evaluation-val\.npz",
    "doctor": r"best/.*|recipe\.yaml|split\.json",
    "go on elsewhere": r"best/.*",
    "label": r"best/.*",
    "select": r"best/.*",
    "soup": r"best/.*|final/.*|recipe\.yaml|split\.json",
    "ensemble": r"best/.*|final/.*",
    "teacher": r"best/.*",
}
# What commands go on from when they are given again: below `disk/`, where they wrote it.
AGAIN = {
    "crossval": r"cv/(recipe\.yaml|folds\.json|crossval\.json|folds/1\.json|folds/1\.npz|folds/1/final/[^/]*)",
    "tune": r"study/(study\.journal|recipe\.yaml|split\.json|tune\.json|trials/0000/best/[^/]*)",
    "select": r"chosen/(\.survey\.jsonl|selection\.json)",
}


def _flipped(at: Callable[[int], int], content: bytes, is_text: bool) -> bytes:
    # Of a text, the bit that no letter has: another digit in its place cannot be told from what was written.
    position = min(at(len(content)), len(content) - 1)
    return content[:position] + bytes([content[position] ^ (0x80 if is_text else 0x04)]) + content[position + 1 :]


WAYS: dict[str, Callable[[bytes, bool], bytes]] = {
    "first bit": partial(_flipped, lambda size: 0),
    "bit in the middle": partial(_flipped, lambda size: size // 2),
    "last bit": partial(_flipped, lambda size: size - 2),
    "half": lambda content, is_text: content[: len(content) // 2],
    "one byte short": lambda content, is_text: content[:-1] if not is_text else content[: len(content) * 9 // 10],
    "empty": lambda content, is_text: b"",
    "zeros": lambda content, is_text: bytes(len(content)),
}


FEW = ("bit in the middle", "half", "missing")  # for commands that open a checkpoint as others do


def cases(place: Workplace) -> Iterator[Case]:
    """Every file of a run x every way x every command that reads it; and what commands go on from."""
    for command in COMMANDS:
        whole(place, command)
    for file in files_of(place.undisturbed("plain")):
        for way in (*WAYS, "missing", "a folder"):
            for command, reads in READS.items():
                is_wanted = way in FEW or command not in ("label", "select", "soup", "ensemble", "teacher")
                if is_wanted and re.fullmatch(reads, file):
                    name = f"{command}: {file}: {way}"
                    yield Case("damaged files", name, partial(_judge, place, command, file, way))
    for command, reads in AGAIN.items():
        for file in written(place, command):
            for way in FEW if re.fullmatch(reads, file) else ():
                name = f"{command} again: {file}: {way}"
                yield Case("damaged files", name, partial(_judge_again, place, command, file, way))
    for way in FEW:
        yield Case("damaged files", f"logits of a teacher: {way}", partial(_judge_cache, place, way))


def _judge_again(place: Workplace, command: str, file: str, way: str, folder: Path) -> Verdict:
    """What a command wrote is damaged, and the command given again."""
    shutil.copytree(written_folder(place, command), folder, dirs_exist_ok=True)
    damage(folder / "disk" / file, way)
    if command == "select":
        shutil.rmtree(folder / "disk" / "chosen" / "labelme")  # which is refused where it is
    writer = WRITERS[command]
    ended = forks.run([*writer.words, *writer.again], folder, limit=LONG, secret=place.secret)
    verdict = Verdict.of(ended)
    if ended.code == 0:
        if (other := unlike(command, files_of(folder / "disk"), written(place, command))) and not names(ended, file):
            verdict.add("silent", f"other files, and nothing of {file}: {other} {ended.said[-500:]}")
    elif not names(ended, file):
        verdict.add("silent", f"the message does not name {file}: {ended.said[-700:]}")
    return verdict


def _judge_cache(place: Workplace, way: str, folder: Path) -> Verdict:
    """Logits that were kept are damaged: they are computed anew, and the training is the same."""
    place.prepare(folder, "taught")
    whole_run = place.undisturbed("taught")
    shutil.copytree(place.place / "logits", folder / "logits")
    for path in sorted((folder / "logits").rglob("*.npz"))[::2]:
        damage(path, way)
    ended = forks.run(train_words("taught"), folder, secret=place.secret)
    verdict = Verdict.of(ended)
    if ended.code != 0:
        verdict.add("lost", f"does not compute them anew: {ended.said[-500:]}")
    elif difference := differences(folder / "run", whole_run):
        verdict.add("silent", difference)
    return verdict


def _judge(place: Workplace, command: str, file: str, way: str, folder: Path) -> Verdict:
    prepare(place, folder)
    damage(folder / "plain" / file, way)
    ended = forks.run(COMMANDS[command], folder, secret=place.secret)
    verdict = Verdict.of(ended)
    if ended.code == 0:
        expected = whole(place, command)
        if outcome(command, ended, folder, place) != expected and not names(ended, file):
            verdict.add("silent", f"another outcome, and nothing of {file}: {ended.said[-700:]}")
    elif command == "resume" and way != "a folder" and file not in ("recipe.yaml", "split.json"):
        verdict.add("lost", f"does not go on: {ended.said[-700:]}")
    elif not names(ended, file):
        verdict.add("silent", f"the message does not name {file}: {ended.said[-700:]}")
    return verdict


def prepare(place: Workplace, folder: Path) -> None:
    place.prepare(folder)
    shutil.copytree(place.undisturbed("plain"), folder / "plain")
    (folder / "disk").mkdir()
    shutil.copy(folder / "plain" / "evaluation-val.npz", folder / "other.npz")


def damage(path: Path, way: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way != "missing":
        path.write_bytes(WAYS[way](content, path.suffix in TEXTS))


def names(ended: Ended, file: str) -> bool:
    """Whether what was said speaks of a file: by its name, or by that of the folder of its checkpoint."""
    parts = Path(file).parts
    return parts[-1] in ended.said or (len(parts) > 1 and "/".join(parts[:-1]) in ended.said)


def outcome(command: str, ended: Ended, folder: Path, place: Workplace) -> object:
    """What a command brings about, without what differs from one time to the next."""
    if command == "resume":
        return differences(folder / "plain", place.undisturbed("plain"))
    if command == "predict":
        return files_of(folder / "masks")
    if command == "report":
        page = (folder / "page.html").read_text().replace(str(folder), "")
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d|clip\d+|id=\S+|#\w+|[\d.]+ s for \d+ images", "", page)
    if command in ("go on elsewhere", "teacher"):
        return files_of(folder / "run" / "final")
    if command in WRITERS:
        pages = (".html", ".survey.jsonl")  # which hold times
        return {path: content for path, content in files_of(folder / "disk").items() if not path.endswith(pages)}
    return ended.said.replace(str(folder), "")


@cache
def whole(place: Workplace, command: str) -> object:
    """The outcome of a command on a run that is whole."""
    folder = place.root / f"whole-{command.replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    prepare(place, folder)
    ended = forks.run(COMMANDS[command], folder, secret=place.secret)
    assert ended.code == 0 and not ended.outside, ended
    return outcome(command, ended, folder, place)
