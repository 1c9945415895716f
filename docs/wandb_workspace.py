"""A ready-made W&B workspace for runs tracked with `track=wandb`: policy, rewards, losses, speed.

pip install wandb-workspaces
python docs/wandb_workspace.py ENTITY [PROJECT]
"""

import argparse

from wandb_workspaces import workspaces
from wandb_workspaces.reports import v2 as panels

X = "outer_step"


def line(title: str, *names: str) -> panels.LinePlot:
    """Metrics over the outer steps."""
    return panels.LinePlot(title=title, x=X, y=list(names))


def each_trajectory(title: str, name: str) -> panels.LinePlot:
    """A metric of every trajectory over the outer steps."""
    return panels.LinePlot(title=title, x=X, metric_regex=f"trajectory/.*/{name}")


def workspace(entity: str, project: str) -> workspaces.Workspace:
    """The workspace, not saved yet."""
    policy = [
        panels.MediaBrowser(title="probability of each operation / uniform", media_keys=["policy/heatmap"]),
        panels.MediaBrowser(title="probability of each element / uniform", media_keys=["policy/marginals"]),
        line("entropy of the policy (nats)", "entropy"),
        line("p-value: 1 is noise, 0.05 is not", "evidence/p_value"),
        line("signal to noise of an outer step", "evidence/signal_to_noise"),
        line("tied rewards", "evidence/tied_share", "evidence/step_tied_share"),
        panels.MediaBrowser(title="augmented training images", media_keys=["images/augmented"]),
    ]
    learning = [
        line("held-out accuracy, best and mean", "reward/best", "reward/mean"),
        each_trajectory("held-out accuracy", "reward"),
        each_trajectory("advantage", "advantage"),
        line("winner", "winner"),
        line("trajectories that diverged", "diverged"),
        line("training loss", "train_loss/mean"),
        line("held-out loss", "heldout_loss/mean"),
        line("learning rate", "learning_rate"),
        panels.ScalarChart(title="test accuracy", metric="result/test_accuracy"),
    ]
    speed = [
        line("images/s", "images_per_second"),
        line(
            "seconds",
            *(
                f"seconds/{phase}"
                for phase in ("load", "augment", "train", "validate", "adopt", "check", "save")
            ),
        ),
    ]
    sections = [
        workspaces.Section(name=name, panels=panels_of, is_open=True)
        for name, panels_of in (("Policy", policy), ("Learning", learning), ("Speed", speed))
    ]
    return workspaces.Workspace(entity=entity, project=project, name="OHL-Auto-Aug", sections=sections)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Save the workspace in a W&B project.")
    parser.add_argument("entity", help="your W&B user or team")
    parser.add_argument("project", nargs="?", default="ohl-accel", help="run.project of the recipe")
    given = parser.parse_args()
    print(workspace(given.entity, given.project).save().url)
