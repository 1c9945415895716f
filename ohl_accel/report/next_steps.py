"""What to do next with a run, as the page says it: commands that can be copied."""

import shlex
from collections.abc import Sequence

from ohl_accel.data.source import IN_MEMORY
from ohl_accel.report.comparisons import Found
from ohl_accel.report.read import Run


def next_steps(run: Run, compared: Sequence[Found]) -> list[tuple[str, str]]:
    """(What for, command), those first that a reader needs most.

    Args:
        run: finished or not.
        compared: comparisons that the page already shows.
    """
    folder = str(run.folder)
    runs_again = run.recipe is not None and run.recipe.data.path != IN_MEMORY
    if not run.is_run:
        return []
    if not run.finished:
        steps = [
            ("to redraw this page until the run is finished", f"ohl-accel report {_q(folder)} --watch 30")
        ]
        if runs_again:
            kind = "search" if run.learned else "train"
            again = f"ohl-accel {kind} {_q(folder)} run.dir={_q(folder)} run.resume=auto"
            steps.append(("to resume it, should it have been stopped", again))
        return steps
    steps = []
    if runs_again and not compared:
        policies = (
            "none,uniform,trivialaugment,uniform-best-of-n,ohl,ohl-fresh" if run.learned else "none,uniform"
        )
        command = f"ohl-accel compare {_q(folder)} --seeds 3 --policies {policies}"
        what = "the policy is worth anything" if run.learned else "augmentation is worth anything"
        steps.append((f"to find out whether {what}: one run cannot tell", command))
    if run.policy is not None and run.learned:
        code = f'from ohl_accel import PolicyTransform\ntransform = PolicyTransform("{folder}")'
        steps.append(("to use the policy in a pipeline of yours", code))
        if runs_again:
            target = f"run.dir={_q(folder.rstrip('/') + '-learned')}"
            train = f"ohl-accel train {_q(folder)} augment.policy={_q(folder)} {target}"
            steps.append(("to train a network with it from the beginning", train))
    if run.recipe is None or run.recipe.hub.repo is None:
        steps.append(("to publish it on the Hub", f"ohl-accel hub push {_q(folder)} USER/NAME"))
    return steps


def _q(text: str) -> str:
    return shlex.quote(text)
