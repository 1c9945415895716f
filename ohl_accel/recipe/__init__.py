"""The recipe: everything that determines a run, typed, fully checked and frozen.

A recipe is a YAML file plus dotted overrides (`outer.steps=3 run.dir=out`).
"""

from ohl_accel.recipe.recipe import Recipe
from ohl_accel.recipe.sections import (
    AugmentSection,
    DataSection,
    HubSection,
    InnerSection,
    ModelSection,
    OptimizerSection,
    OuterSection,
    RandomResizedCropSection,
    RunSection,
    ScheduleSection,
    TrainSection,
)

__all__ = [
    "AugmentSection",
    "DataSection",
    "HubSection",
    "InnerSection",
    "ModelSection",
    "OptimizerSection",
    "OuterSection",
    "RandomResizedCropSection",
    "Recipe",
    "RunSection",
    "ScheduleSection",
    "TrainSection",
]
