"""A ready-made W&B workspace for runs tracked with `track=wandb`: policy, rewards, losses, speed.

pip install wandb-workspaces
python docs/wandb_workspace.py ENTITY [PROJECT]
"""

import argparse
from typing import Any

from wandb_workspaces import workspaces
from wandb_workspaces.reports import v2 as panels

from ohl_accel.observers.scalars import LAYOUT

X = "outer_step"


def line(title: str, *names: str) -> panels.LinePlot:
    """Metrics over the outer steps."""
    return panels.LinePlot(title=title, x=X, y=list(names))


def matching(title: str, pattern: str) -> panels.LinePlot:
    """All metrics whose names match a regular expression, over the outer steps."""
    return panels.LinePlot(title=title, x=X, metric_regex=pattern)


def workspace(entity: str, project: str) -> workspaces.Workspace:
    """The workspace, not saved yet: the sections of TensorBoard's layout, and images."""
    pictures = [
        panels.MediaBrowser(title="probability of each operation / uniform", media_keys=["policy/heatmap"]),
        panels.MediaBrowser(title="probability of each element / uniform", media_keys=["policy/marginals"]),
        panels.MediaBrowser(title="augmented training images", media_keys=["images/augmented"]),
    ]
    sections = []
    for name, charts in LAYOUT.items():
        shown: list[Any] = []
        for title, (_, series) in charts.items():
            is_pattern = any("*" in each for each in series)
            shown.append(matching(title, series[0]) if is_pattern else line(title, *series))
        if name == "Learning":
            shown.append(panels.ScalarChart(title="test accuracy", metric="result/test_accuracy"))
        if name == "Policy":
            shown = [*pictures, *shown]
        sections.append(workspaces.Section(name=name, panels=shown, is_open=True))
    return workspaces.Workspace(entity=entity, project=project, name="OHL-Auto-Aug", sections=sections)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Save the workspace in a W&B project.")
    parser.add_argument("entity", help="your W&B user or team")
    parser.add_argument("project", nargs="?", default="ohl-accel", help="run.project of the recipe")
    given = parser.parse_args()
    print(workspace(given.entity, given.project).save().url)
