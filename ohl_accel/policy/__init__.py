"""The augmentation policy: its distribution, its estimators, fixed baselines, and its use in a pipeline."""

from ohl_accel.policy.policy import Policy

__all__ = ["Policy"]
