"""OHL-Auto-Aug: learn the augmentation policy while the network trains.

`from ohl_accel import Policy` needs torch alone; training adds accelerate, datasets and timm.
"""

from ohl_accel.policy import Policy

__all__ = ["Policy"]
__version__ = "0.1.0"
