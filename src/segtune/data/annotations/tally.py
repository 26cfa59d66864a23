"""Annotation accounting: every annotation that a reader is given is drawn, ignored by a stated rule, or reported.

A reader counts what it was given (`Tally.give`) before it looks at it, and names where each annotation ends
(`Tally.end`) that does not become a shape. Shapes end in `find_images.keep_annotated`, which sees the size of their
picture: there they are drawn, or cover nothing. `accounts.settle` says the result once, when the data set has been
opened: a sentence in the log, a remark for what was lost, a problem where it is too much. What no one counted shows as
`Tally.unaccounted`, which must be 0.

For the doctor: `index.tally` (None for masks that are stored as pictures) has `losses()`, of which each is a warning
with its annotations, and `str(tally)`, a fact. What is above a limit is in `index.problems` as well, with the fate's
kind as its own: there it is an error, and needs no second finding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from segtune.errors import listed

MOST_LOST = 0.1  # of all annotations: COCO's own files have a few that enclose nothing


class Fate(NamedTuple):
    """Where an annotation ends that is not drawn.

    Attributes:
        kind: a word for programs, that of the problem where it becomes one.
        what: in words, after the number of annotations.
        fix: what to do about it; none for what is ignored by a rule.
        limit: the share of all annotations above which it is an error; None: never.
    """

    kind: str
    what: str
    fix: str = ""
    limit: float | None = None


# Ignored by a rule.
CROWD = Fate("crowd", "crowd regions, which are ignored (dataset.crowd=class draws them)")
MARKED = Fate("marked", "named to be ignored")
LINE = Fate("line", "lines, points, tags or skeletons, which have no area")
UNFINISHED = Fate("unfinished", "of tasks that were cancelled or not finished")
UNUSABLE = Fate("unusable", "of images that cannot be used")  # which are problems themselves
RULES = {fate.kind: fate for fate in (CROWD, MARKED, LINE, UNFINISHED)}

# Lost.
EMPTY = Fate(
    "annotation_empty",
    "that enclose nothing",
    "An outline has three points or more, not all on one line: repair or remove these annotations",
    MOST_LOST,
)
OUTSIDE = Fate(
    "annotation_outside",
    "outside of their picture",
    "Coordinates are pixels, from the upper left corner of the picture: export them so, or remove them",
    MOST_LOST,
)
TINY = Fate(
    "annotation_tiny",
    "that cover no pixel",
    "Coordinates are pixels of the picture, not parts of its sides: export them so, or remove them",
    MOST_LOST,
)
STRANGER = Fate(
    "annotation_without_image",
    "of images that are not listed",
    "Give the annotations the ids of the images, or remove them",
    MOST_LOST,
)
FAR = Fate(
    "annotation_far",
    "that reach more than a million pixels out of their picture",
    "No picture is that large: repair or remove these annotations",
    0.0,
)
UNKNOWN = Fate(
    "annotation_unknown",
    "of a kind that is not known",
    "Export polygons, boxes, ellipses or masks instead, or remove these annotations",
    0.0,
)
NAMELESS = Fate(
    "annotation_without_class",
    "without a class",
    "Give them the name of a class, or remove them",
    0.0,
)
BOX = Fate(
    "annotation_without_outline",
    "without a segmentation",
    "Boxes are no masks: export polygons or run lengths, or remove these annotations",
    0.0,
)


@dataclass
class Tally:
    """Where the annotations of a data set ended.

    Attributes:
        given: how many there were.
        ends: (fate, class) -> how many; the fate is None for those that are drawn.
        entries: fate -> what it happened to, as "file: entry", in the order of reading; of what is lost only.
        images: split -> its images.
        annotated: split -> its images that have an annotation.
    """

    given: int = 0
    ends: Counter[tuple[Fate | None, str]] = field(default_factory=Counter)
    entries: dict[Fate, list[str]] = field(default_factory=lambda: defaultdict(list))
    images: Counter[str] = field(default_factory=Counter)
    annotated: Counter[str] = field(default_factory=Counter)

    def give(self, count: int = 1) -> None:
        """Count annotations that will be looked at."""
        self.given += count

    def end(self, fate: Fate | None, entry: str, label: str = "", count: int = 1) -> None:
        """Count where annotations ended.

        Args:
            fate: None where they are drawn.
            entry: which ones, as "file: entry".
            label: their class, where it is known.
        """
        if not count:
            return
        self.ends[fate, label] += count
        if fate is not None and fate.limit is not None:
            self.entries[fate].append(entry)

    def take(self, outline: dict[str, Any] | Fate, label: str | None, file: str, entry: str) -> dict[str, Any] | None:
        """A shape with the name of its entry; None where it is not drawn, which is counted.

        Args:
            outline: the shape, or where it ends.
            label: its class; None or blank: it has none, and ends there.
            file, entry: its place, for messages.
        """
        label = label if label and label.strip() else ""
        if isinstance(outline, dict) and label:
            return {**outline, "entry": entry}
        self.end(NAMELESS if isinstance(outline, dict) else outline, f"{file}: {entry}", label)
        return None

    def count(self, fate: Fate | None) -> int:
        """How many ended so; None: were drawn."""
        return sum(number for (own, _), number in self.ends.items() if own == fate)

    @property
    def drawn(self) -> int:
        """How many become pixels of a mask."""
        return self.count(None)

    @property
    def unaccounted(self) -> int:
        """How many were given and ended nowhere: 0, unless a reader has a fault."""
        return self.given - sum(self.ends.values())

    def fates(self) -> list[Fate]:
        """Those that occurred, besides being drawn."""
        return list(dict.fromkeys(fate for fate, _ in self.ends if fate is not None))

    def losses(self) -> list[tuple[Fate, list[str]]]:
        """Each fate that is not a rule, and the annotations that ended so as "file: entry"."""
        return list(self.entries.items())

    def never_drawn(self, fate: Fate) -> list[str]:
        """The classes of which all annotations ended so, or otherwise undrawn."""
        drawn = {label for end, label in self.ends if end is None}
        return sorted({label for end, label in self.ends if end == fate and label and label not in drawn})

    def __str__(self) -> str:
        """Such as "12 annotations: 9 drawn, 2 crowd regions, …, 1 that enclose nothing (a.json: annotation 7)"."""
        parts = [f"{self.drawn} drawn"]
        for fate in self.fates():
            entries = self.entries.get(fate)
            parts.append(f"{self.count(fate)} {fate.what}{f' ({listed(entries, 3)})' if entries else ''}")
        if self.unaccounted:
            parts.append(f"{self.unaccounted} that segtune lost count of")
        return f"{self.given} annotations: {', '.join(parts)}"
