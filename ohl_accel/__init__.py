"""OHL-Auto-Aug: learn the augmentation policy while the network trains.

`from ohl_accel import Policy` needs torch alone, `PolicyTransform` torchvision too; training adds accelerate,
datasets and timm.
"""

from typing import TYPE_CHECKING, Any

from ohl_accel.policy import Policy

if TYPE_CHECKING:
    from ohl_accel.policy.transform import PolicyTransform

__all__ = ["Policy", "PolicyTransform"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "PolicyTransform":  # imported on demand, because torchvision takes a second
        from ohl_accel.policy.transform import PolicyTransform

        return PolicyTransform
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
