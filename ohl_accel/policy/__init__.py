"""The augmentation policy: what it is, how it learns, fixed ones to compare with, and its use in a pipeline."""

from ohl_accel.policy.policy import Policy

__all__ = ["Policy"]
