"""How the policy learns: `outer.estimator` names one of these, or the user's own class.

`Reinforce` is the paper's (Eq 3 and 6). `ReinforceTrust` and `ReinforceSignificant` hold it back, `Factorised` learns
fewer numbers with it; `Evolution`, `Screening`, `Population` and its kin give each trajectory a policy of its own.
"""

from collections.abc import Mapping
from typing import Any

from ohl_accel.errors import UserError
from ohl_accel.extensions import find_class, why_refused
from ohl_accel.policy.estimators.estimator import RECORDS, Estimator, FinishedStep
from ohl_accel.policy.estimators.evolution import Evolution
from ohl_accel.policy.estimators.factorised import Factorised
from ohl_accel.policy.estimators.population import Halving, Population
from ohl_accel.policy.estimators.population_based import PopulationBasedTraining
from ohl_accel.policy.estimators.reinforce import Reinforce, advantage_of, outer_gradient
from ohl_accel.policy.estimators.screening import Screening
from ohl_accel.policy.estimators.trust import ReinforceSignificant, ReinforceTrust
from ohl_accel.policy.evidence import Evidence
from ohl_accel.policy.policy import Policy

__all__ = [
    "ESTIMATORS",
    "RECORDS",
    "Estimator",
    "Evidence",
    "Evolution",
    "Factorised",
    "FinishedStep",
    "Halving",
    "Population",
    "PopulationBasedTraining",
    "Reinforce",
    "ReinforceSignificant",
    "ReinforceTrust",
    "Screening",
    "advantage_of",
    "open_estimator",
    "outer_gradient",
]

ESTIMATORS: dict[str, type[Estimator]] = {
    "reinforce": Reinforce,
    "screening": Screening,
    "population": Population,
    "halving": Halving,
    "pbt": PopulationBasedTraining,
    "reinforce-trust": ReinforceTrust,
    "reinforce-significant": ReinforceSignificant,
    "reinforce-factorised": Factorised,
    "evolution": Evolution,
}
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
        why = why_refused(kind, options, ("self", "policy", *settings), error)
        raise UserError(f"outer.estimator={name}, outer.estimator_args={dict(options)}: {why}") from error
