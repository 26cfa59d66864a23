"""A live table of a training in a notebook: steps, loss, learning rate and scores, drawn anew in one place."""

from __future__ import annotations

from typing import Any, NamedTuple

from segtune.bars import notebook
from segtune.viz.html import render

MOST_ROWS = 30  # that are shown, the latest


class Row(NamedTuple):
    """What is known at a step; None for what is not."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    score: float | None = None
    best: float | None = None


class LiveTable:
    """Shows a bar and a table, with a row for each evaluation and one for the steps since the last one.

    Only for a notebook, see `bars.notebook`.

    Args:
        total: steps of the training.
        step: made before.
        score: what the column of scores is called.
    """

    def __init__(self, total: int, step: int = 0, score: str = "val mIoU") -> None:
        self.total, self.score = total, score
        self.rows: list[Row] = []
        self.latest = Row(step)
        self.best: float | None = None
        self.note = ""
        self._handle: Any = None
        self.draw()

    def log(self, step: int, loss: float, learning_rate: float, speed: float) -> None:
        """Show the mean loss since the last time, the learning rate, and the speed in images per second."""
        self.latest = Row(step, loss, learning_rate)
        self.note = f"{speed:.1f} images/s"
        self.draw()

    def evaluating(self) -> None:
        """Say that an evaluation is under way."""
        self.note = "evaluating"
        self.draw()

    def evaluated(self, step: int, score: float | None) -> None:
        """Show the score of an evaluation; None where the split has no class of the labels."""
        known = [value for value in (self.best, score) if value is not None]
        self.best = max(known, default=None)
        self.latest = self.latest._replace(step=step, score=score, best=self.best)
        self.rows.append(self.latest)
        self.note = ""
        self.draw()

    def finish(self, reason: str) -> None:
        """Say why the training ended."""
        self.note = reason
        self.draw()

    def draw(self) -> None:
        """Draw it, in the place where it was."""
        display = notebook().display
        page = display.HTML(self.html())
        if self._handle is None:
            self._handle = display.display(page, display_id=True)
        else:
            self._handle.update(page)

    def html(self) -> str:
        """The bar and the table."""
        is_open = self.latest.loss is not None and self.latest.step not in {row.step for row in self.rows[-1:]}
        rows = [*self.rows, self.latest] if is_open else self.rows
        return render(
            "viz/templates/live_table.html", table=self, rows=rows[-MOST_ROWS:], hidden=max(0, len(rows) - MOST_ROWS)
        )
