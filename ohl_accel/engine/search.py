"""The search: one run learns the network and the augmentation policy together (Algorithm 1).

python -m ohl_accel.search RECIPE [section.key=value ...]
accelerate launch --config_file accelerate_configs/node_8gpu.yaml -m ohl_accel.search RECIPE
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ohl_accel.engine.run import Run
from ohl_accel.engine.setup import execute, join_launch
from ohl_accel.observers.display import Display
from ohl_accel.policy.estimators import advantage_of


def learn(run: Run, display: Display) -> None:
    """The outer loop of Algorithm 1, from the last checkpoint to T_max."""
    groups, hosted, outer = run.groups, run.hosted, run.outer_optimizer
    assert outer is not None
    batches, phases, policy = run.batches(), run.phases, outer.policy
    for outer_step in range(run.first_outer_step, run.recipe.outer.steps):
        with phases("train"):
            run.train(batches, outer_step, display)
        with phases("validate"):
            outcome = run.validate(outer_step)
            replaced = run.count_replaced(outer_step, run.data.train)
            reward_N = rewards_of(outcome["accuracy"], outcome["finite"])
            winner = winner_of(reward_N, outcome["finite"])
        with phases("gather"):
            counts_NK = groups.gather(torch.stack([trajectory.counts_K for trajectory in hosted]))
        with phases("update"):
            advantage_N = advantage_of(reward_N)
            outer.step(counts_NK, advantage_N)
        with phases("adopt"):
            groups.adopt(winner, [trajectory.state_tensors() for trajectory in hosted])
        with phases("check"):
            groups.assert_equal([[*t.state_tensors(), policy.theta] for t in hosted], "the states adopted")
        if run.folder is not None:
            line = {
                "outer_step": outer_step,
                "reward": reward_N.tolist(),
                "winner": winner,
                "advantage": advantage_N.tolist(),
                "diverged": (outcome["finite"] == 0).nonzero().flatten().tolist(),
                "train_loss": outcome["train_loss"].tolist(),
                "heldout_loss": outcome["heldout_loss"].tolist(),
                "entropy": policy.entropy,
                "replaced_images": replaced,
                "element_probabilities": policy.element_probabilities.tolist(),
                "top_operations": [{"operation": name, "probability": p} for name, p in policy.top(5)],
                "learning_rate": hosted[0].learning_rate,
                "theta_learning_rate": run.recipe.outer.lr,
            }
            run.record(line, display)
        with phases("save"):
            run.save(outer_step + 1)


def rewards_of(accuracy_N: Tensor, finite_N: Tensor) -> Tensor:
    """Validation accuracies; a trajectory that is not finite gets the lowest of the others'.

    A reward of 0 instead would dwarf the differences between sound trajectories, and Adam's second
    moment would remember it for a thousand steps.
    """
    sound_N = finite_N.bool()
    return torch.where(sound_N, accuracy_N, accuracy_N[sound_N].min())


def winner_of(reward_N: Tensor, finite_N: Tensor) -> int:
    """The trajectory with the best reward among the finite ones; of equals, the first."""
    sound_N = finite_N.bool()
    return int(((reward_N == reward_N[sound_N].max()) & sound_N).nonzero()[0])


def search(path: str, overrides: Sequence[str] = ()) -> None:
    """Run a recipe, whole or from its last checkpoint, in the launch that this process belongs to.

    Raises:
        UserError: if it cannot work; before training begins wherever that can be known.
        RunFailedError: if no trajectory can go on.
    """
    recipe, accelerator = join_launch(path, overrides)
    execute(recipe, accelerator, learn, learn_policy=True)
