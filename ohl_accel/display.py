"""What the user sees while a run goes on: a progress bar on a terminal, plain lines elsewhere.

Only the main process shows anything.
"""

import math
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ohl_accel.elements import NUM_OPERATIONS
from ohl_accel.policy import Policy


class Display:
    """Progress and messages of one run.

    Args:
        shown: False on all processes but the main one.
    """

    def __init__(self, shown: bool) -> None:
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (shown and self.console.is_terminal),
        )
        self._task = self._progress.add_task("outer step 1", start=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._progress.disable:
            self._progress.stop()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    def start(self, first_outer_step: int, outer_steps: int, inner_steps: int) -> None:
        """Set the length of the bar, in inner steps of one trajectory."""
        self._outer_steps = outer_steps
        self._progress.reset(
            self._task, completed=first_outer_step * inner_steps, total=outer_steps * inner_steps
        )
        if not self._progress.disable:
            self._progress.start()

    def inner_step(self) -> None:
        """All hosted trajectories have done one more inner step."""
        self._progress.advance(self._task)

    def outer_step(self, metrics: dict[str, Any]) -> None:
        """Show the best reward and the entropy; off a terminal, as a line of its own."""
        if metrics.get("diverged"):
            numbers = ", ".join(map(str, metrics["diverged"]))
            self.say(
                f"warning: outer step {metrics['outer_step'] + 1}: trajectories {numbers} diverged; they cannot win"
            )
        best = max(metrics["reward"])
        if "entropy" in metrics:
            text = f"best reward {best:.4f}, entropy {metrics['entropy']:.4f}"
        else:
            text = "" if math.isnan(best) else f"held-out accuracy {best:.4f}"
        if self._progress.disable:
            seconds = sum(metrics["seconds"].values())
            winner = f", winner {metrics['winner']}" if "winner" in metrics else ""
            self.say(
                f"outer step {metrics['outer_step'] + 1}/{self._outer_steps}: "
                f"{text}{winner}{', ' if text else ''}loss "
                f"{metrics['train_loss'][metrics.get('winner', 0)]:.4f}, {seconds:.2f} s"
            )
        else:
            done = f"outer step {metrics['outer_step'] + 1}/{self._outer_steps}"
            self._progress.update(self._task, description=f"{done}, {text}")

    def summary(self, learned: Policy | None, result: dict[str, Any], files: dict[str, str]) -> None:
        """The end of a run: test accuracy, operations gained and lost, files written.

        Args:
            learned: the policy, if it was learned in this run.
            result: of the test.
            files: path -> what it is.
        """
        title = "Training finished" if learned is None else "Search finished"
        table = Table(title=title, show_header=False, title_justify="left")
        if "test_accuracy" not in result:
            table.add_row("test accuracy", "no test split (data.test_split=null)")
        else:
            images = result["test_images"]
            table.add_row("test accuracy", f"{100 * result['test_accuracy']:.2f} % of {images} images")
        if result["heldout_accuracy"] is not None:
            note = "" if learned is None else " (chose the winner: optimistic)"
            table.add_row("held-out accuracy", f"{100 * result['heldout_accuracy']:.2f} %{note}")
        if learned is not None:
            table.add_row("entropy", f"{learned.entropy:.4f} nats, uniform {Policy().entropy:.4f}")
            for what, ranked in (("gained", learned.top(3)), ("lost", learned.bottom(3))):
                lines = [f"{name}: {p * NUM_OPERATIONS:.2f} x uniform" for name, p in ranked]
                table.add_row(f"operations {what}", "\n".join(lines))
        self.console.print(table)
        width = max(map(len, files))
        for path, what in files.items():
            self.say(f"{path:{width}}  {what}")
