"""The search: one run learns the network and the augmentation policy together (Algorithm 1)."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ohl_accel.engine.run import Outcome, Run
from ohl_accel.engine.session import RecipeSource, Result, execute
from ohl_accel.observers.observer import Observer
from ohl_accel.policy.estimators.estimator import Estimator, FinishedStep, finite_rewards


def outer_loop(run: Run) -> list[float] | None:
    """The outer loop of Algorithm 1, from the last checkpoint to T_max; returns the last rewards.

    The estimator decides which policy each trajectory draws from, after which outer steps trajectories are scored, and
    whose state they continue with: with the paper's, the same policy, every one, and the winner's.
    """
    estimator, phases, last = run.estimator, run.phases, run.recipe.outer.steps - 1
    assert estimator is not None
    batches, policy = run.batches(), estimator.policy
    rewards: list[float] | None = None
    if run.first_outer_step:
        run.evidence()  # so that the policy has it even if no outer step is left
    for outer_step in range(run.first_outer_step, last + 1):
        is_scored = outer_step == last or estimator.is_scored(outer_step)
        with phases("train"):
            run.train(batches, outer_step)
        with phases("validate"):
            outcome = run.validate(outer_step, is_scored)
            replaced = run.replacements.count(outer_step, run.data.train)
        learned: dict[str, Any] = {}
        parents = list(range(run.groups.trajectories))
        line: dict[str, Any] = {"diverged": (~outcome.finite_N).nonzero().flatten().tolist()}
        if is_scored:
            finished, learned, parents = _learn(run, estimator, outer_step, outcome)
            line |= {"reward": finished.reward_N.tolist(), "winner": finished.winner, **run.evidence()}
        rewards = line.get("reward")
        lost = run.recipe.outer.trajectories - run.groups.trajectories
        line |= {
            **({"lost_trajectories": lost} if lost else {}),
            "entropy": policy.entropy,
            "element_probabilities": policy.element_probabilities.tolist(),
            "top_operations": [{"operation": name, "probability": p} for name, p in policy.top(5)],
        }
        run.record(outer_step, outcome, replaced, line, learned)
        with phases("save"):
            several = run.groups.trajectories > 1 and run.recipe.outer.adopt == "weights"
            run.save(outer_step + 1, apart=several or len(set(parents)) > 1)
    return rewards


def _learn(
    run: Run, estimator: Estimator, outer_step: int, outcome: Outcome
) -> tuple[FinishedStep, dict[str, Any], list[int]]:
    """Update the policy (Eq 3), and let every trajectory adopt its parent's state.

    Returns:
        What the estimator learned from, what it returned, and the parents.
    """
    groups, phases = run.groups, run.phases
    with phases("gather"):
        reward_N = finite_rewards(outcome.reward_N, outcome.finite_N)
        finished = run.finished(outer_step, outcome, reward_N)
    with phases("update"):
        learned = estimator.step(finished)
        parents = run.parents(finished)
    with phases("adopt"):
        adopted = [each.state_tensors(run.recipe.outer.adopt == "state") for each in run.hosted]
        groups.adopt(parents, adopted)
    with phases("check"):
        states = [[*tensors, estimator.policy.theta] for tensors in adopted]
        groups.assert_equal(parents, states, "the states adopted")
    return finished, learned, parents


def search(
    recipe: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    dataset: Any = None,
    model: nn.Module | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Learn a policy while training a network, in the launch that this process belongs to; or resume it.

    Every process of a launch (`accelerate launch script.py`, `accelerate.notebook_launcher`) must call it with the same
    arguments.

    Args:
        recipe: a file, the name of a recipe that comes with the package, a mapping of its sections, or a `Recipe`.
        overrides: `section.key=value`, as on the command line.
        dataset: instead of `data.path`: a `datasets.Dataset` of training images, a mapping from split names to such
            datasets (for instance a `DatasetDict`), or map-style torch datasets of (image, label).
        model: instead of `model.name`: a network; it is copied, not changed.
        observers: notified of the run's progress, on the main process.

    Returns:
        The learned policy, the network, the metrics and the test scores.

    Raises:
        UserError: if it cannot work; before training begins whenever possible.
        RunFailedError: if no trajectory can continue.
    """
    return execute(
        recipe, overrides, outer_loop, learn=True, dataset=dataset, model=model, observers=observers
    )
