"""What a run costs, before it begins: `facts` of the data, the `network` in numbers, the `estimate`, and its text.

Nothing is trained and no memory for weights is taken: networks are outlined on the meta device.
"""

from ohl_accel.cost.estimate import Cost, estimate
from ohl_accel.cost.facts import Facts, facts_of
from ohl_accel.cost.text import lines

__all__ = ["Cost", "Facts", "estimate", "facts_of", "lines"]
