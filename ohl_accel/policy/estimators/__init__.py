"""How the policy learns: `outer.estimator` names one of these, or the user's own class.

`Reinforce` is the paper's (Eq 3 and 6).
"""

from collections.abc import Mapping
from typing import Any

from ohl_accel.errors import UserError
from ohl_accel.extensions import find_class
from ohl_accel.policy.estimators.estimator import RECORDS, Estimator, FinishedStep
from ohl_accel.policy.estimators.reinforce import Reinforce, advantage_of, outer_gradient
from ohl_accel.policy.estimators.screening import Screening
from ohl_accel.policy.policy import Policy

__all__ = [
    "ESTIMATORS",
    "RECORDS",
    "Estimator",
    "FinishedStep",
    "Reinforce",
    "Screening",
    "advantage_of",
    "open_estimator",
    "outer_gradient",
]

ESTIMATORS: dict[str, type[Estimator]] = {"reinforce": Reinforce, "screening": Screening}
"""The built-in estimators by name."""


def open_estimator(name: str, policy: Policy, options: Mapping[str, Any], **settings: Any) -> Estimator:
    """The estimator that a recipe names.

    Args:
        name: a key of `ESTIMATORS`, `package.module:Name` or `path/to/file.py:Name`.
        policy: to learn.
        options: `outer.estimator_args`, additional arguments of its constructor.
        settings: common to all estimators: `lr`, `betas`, `trajectories`, `outer_steps`, `seed`.

    Raises:
        UserError: if there is none, the options are invalid, or it requests what cannot be recorded.
    """
    kind = find_class("outer.estimator", name, ESTIMATORS, Estimator)  # type: ignore[type-abstract]
    unknown = sorted(kind.records - RECORDS.keys())
    if unknown:
        raise UserError(
            f"outer.estimator={name}: {', '.join(unknown)} cannot be recorded; known: {', '.join(RECORDS)}"
        )
    try:
        return kind(policy, **settings, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"outer.estimator={name}, outer.estimator_args={dict(options)}: {error}") from error
