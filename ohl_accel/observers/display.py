"""The output of a run: progress bars on a terminal, lines elsewhere, JSON for other programs.

Only the main process prints.
"""

import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import multiple
from ohl_accel.run_folder.files import RECIPE_FILE
from ohl_accel.run_folder.metrics import json_line
from ohl_accel.run_folder.result import in_words, main_score, metric_of

_SPEED_SECONDS = 1800.0
"""Period for estimating the remaining time; it must be longer than a long outer step."""
_MOVED = 3
"""Elements named in the summary, at most, of those gained and of those lost."""


class Display(Observer):
    """Progress and messages of one run.

    Args:
        shown: False on all processes but the main one.
        mode: auto: bars on a terminal, else as plain; plain: a line for each outer step; quiet: warnings
            and the summary; json: objects with an `event`, one per line.
    """

    def __init__(self, shown: bool, mode: Literal["auto", "plain", "quiet", "json"] = "auto") -> None:
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self.mode = mode
        self._progress = Progress(
            TextColumn("{task.description} {task.fields[done]}/{task.fields[all]}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            speed_estimate_period=_SPEED_SECONDS,
            disable=not (shown and self.console.is_terminal and mode == "auto"),
        )
        self._outer = self._progress.add_task("outer step", start=False, done=0, all=0)
        self._inner = self._progress.add_task("inner step", start=False, done=0, all=0)
        self._phase = self._progress.add_task("", start=False, visible=False, done=0, all=0)
        self._steps_done = 0

    def say(self, text: str) -> None:
        """Show information."""
        if self.mode == "json":
            self._event("message", text=text)
        elif self.mode != "quiet":
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Show what the user may want to act on, in every mode."""
        if self.mode == "json":
            self._event("warning", text=text)
        else:
            self.console.print(f"warning: {text}", markup=False)

    def start(self, run: RunInfo) -> None:
        """Set the lengths of the bars."""
        first, outer_steps, inner_steps = run.first_outer_step, run.recipe.outer.steps, run.inner_steps
        if self.mode == "json":
            self._event("start", first_outer_step=first, outer_steps=outer_steps, inner_steps=inner_steps)
        # the outer bar advances with each inner step, otherwise it might not move for hours
        self._progress.reset(
            self._outer,
            total=outer_steps * inner_steps,
            completed=first * inner_steps,
            done=first,
            all=outer_steps,
        )
        self._progress.reset(self._inner, total=inner_steps, done=0, all=inner_steps)
        if not self._progress.disable:
            self._progress.start()

    def inner_step(self, run: RunInfo) -> None:
        """All hosted trajectories have done one more inner step."""
        self._steps_done += 1
        self._progress.advance(self._outer)
        self._progress.update(self._inner, advance=1, done=self._steps_done)

    def phase(self, run: RunInfo, name: str, done: int, total: int) -> None:
        """Show a third bar while a long phase lasts."""
        if done <= 1:
            self._progress.reset(self._phase, description=name, total=total, visible=True)
        self._progress.update(self._phase, completed=done, done=done, all=total, visible=done < total)

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        """Show the results of an outer step in one line, which a terminal does not have to wrap."""
        done, steps = line["outer_step"] + 1, run.recipe.outer.steps
        self._steps_done = 0
        self._progress.update(self._outer, done=done)
        if done < steps:
            self._progress.reset(self._inner, done=0, all=run.inner_steps)
        if self.mode == "json":
            self._event("outer_step", **line)
        if line.get("diverged"):
            numbers = ", ".join(map(str, line["diverged"]))
            self.warn(f"outer step {done}: trajectories {numbers} diverged; they cannot win")
        if self.mode in ("auto", "plain"):
            start = f"outer step {done}/{steps}: "
            width = self.console.width - len(start) if self.console.is_terminal else math.inf
            self.say(start + _line_in_words(line, run, width))

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """Show the summary: test score, evidence, what was gained and lost, files written, next commands."""
        if not self._progress.disable:
            self._progress.stop()
        files, commands = run.folder.contents(), _next_commands(run)
        if self.mode == "json":
            evidence = run.policy.evidence if run.policy is not None else None
            known = {} if evidence is None else {"evidence": evidence.document()}
            self._event("end", result=dict(result), **known, files=dict(files), commands=commands)
            return
        learned, metric = run.policy, metric_of(result)
        test, heldout = main_score(result), main_score(result, "heldout")
        title = "Training finished" if learned is None else "Search finished"
        table = Table(title=title, show_header=False, title_justify="left")
        if test is None:
            table.add_row(f"test {metric}", "no test split (data.test_split=null)")
        else:
            table.add_row(f"test {metric}", f"{in_words(metric, test)} of {result['test_images']} images")
        if heldout is not None:
            note = "" if learned is None else " (chose the winner: optimistic)"
            table.add_row(f"held-out {metric}", f"{in_words(metric, heldout)}{note}")
        if learned is not None:
            table.add_row(
                "entropy", f"{learned.entropy:.4f} nats, uniform {math.log(len(learned.theta)):.4f}"
            )
            for row in _learned(learned):
                table.add_row(*row)
        self.console.print(table)
        width = max(map(len, files))
        for path, what in files.items():
            self.console.print(f"{path:{width}}  {what}", markup=False)
        for command, what in commands.items():
            self.console.print(f"\n{what}:\n  {command}", markup=False)

    def end(self, run: RunInfo, failed: bool) -> None:
        """Remove the bars from the terminal."""
        if not self._progress.disable:
            self._progress.stop()

    def _event(self, event: str, **values: Any) -> None:
        if not self.console.quiet:
            print(json_line({"event": event, **values}), end="", file=self.console.file, flush=True)


def _next_commands(run: RunInfo) -> dict[str, str]:
    """Suggested next commands -> what each does."""
    path, commands = run.recipe.run.dir, {}
    if run.policy is not None and run.recipe_is_whole:
        again = ["python", "-m", "ohl_accel.train", f"{path}/{RECIPE_FILE}", f"augment.policy={path}"]
        unpublished = ["hub={}"] if run.recipe.hub.repo else []
        command = shlex.join([*again, f"run.dir={path}-learned", *unpublished])
        commands[command] = "to train a network with this policy"
    if run.recipe.hub.repo is None:
        push = shlex.join(["python", "-m", "ohl_accel.hub", "push", path])
        commands[f"{push} USER/NAME"] = "to publish it on the Hub"
    return commands


def _learned(policy: Policy) -> Iterator[tuple[str, str]]:
    """Rows of the summary: whether anything was learned, and what; nothing is called gained or lost that is noise."""
    evidence, number = policy.evidence, len(policy.theta)
    moved = bool((policy.theta != policy.theta[0]).any())
    if not moved:
        yield "operations", "all as probable as at the start: the policy is uniform"
        return
    if evidence is None:
        yield "evidence", "not measured: what was gained and lost may be noise"
    else:
        yield "evidence", evidence.verdict
        if evidence.measurements:
            yield "rewards", evidence.measurements
        if not evidence.teaches and evidence.advice:
            yield "would help", "\n".join(evidence.advice)
    for what, gained in (("gained", True), ("lost", False)):
        elements = [each for each in policy.moved_elements if each.gained == gained][:_MOVED]
        if elements:
            yield f"elements {what}", "\n".join(map(str, elements))
        ranked = policy.top(3) if gained else policy.bottom(3)
        side = 1 if gained else -1
        lines = [
            f"{name}: {multiple(p * number)} x uniform"
            for name, p in ranked
            if evidence is None or evidence.side_of_operation(p * number) == side
        ]
        if lines:
            yield f"operations {what}", "\n".join(lines)


def _line_in_words(metrics: Mapping[str, Any], run: RunInfo, width: float) -> str:
    """Such as `best reward 0.9125, entropy 7.1650, winner 2, p 0.35, 12 % tied, loss 0.3312, 4.25 s`.

    Without a search, what applies; `p` and `tied` are what `Evidence` says of the run so far. What does not fit the
    width is left out, the least important first.
    """
    best, objective = max(metrics["reward"]), run.objective
    parts: dict[str, str] = {}
    if "winner" in metrics:
        parts["score"] = f"best reward {best:.4f}"
        parts["entropy"] = f"entropy {metrics['entropy']:.4f}"
        parts["winner"] = f"winner {metrics['winner']}"
        if "evidence" in metrics and run.policy is not None and run.policy.evidence is not None:
            parts["evidence"] = run.policy.evidence.short
    elif not math.isnan(best):
        score = best if objective.greater_is_better else -best
        parts["score"] = f"held-out {objective.metric} {score:.4f}"
    if "lost_trajectories" in metrics:
        parts["trajectories"] = f"{len(metrics['reward'])} of {run.recipe.outer.trajectories} trajectories"
    loss = metrics["train_loss"][metrics.get("winner", 0)]
    parts["loss"] = f"loss {loss:.4f}"
    parts["seconds"] = f"{sum(metrics['seconds'].values()):.2f} s"
    for least in ("entropy", "winner", "seconds", "loss", "evidence"):
        if len(", ".join(parts.values())) > width:
            parts.pop(least, None)
    return ", ".join(parts.values())
