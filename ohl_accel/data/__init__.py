"""Data: where it is (`source`, `memory`), pixels (`images`, `crops`), labels (`labels`), splits (`schema`, `splits`,
`stratification`), mini-batches (`batches`); for streams the files (`shards`), what is in them (`index`) and how they
are read (`stream`).
"""

from ohl_accel.data.batches import (
    WAIT,
    Batch,
    Blocks,
    TrainingOrder,
    ahead_on_device,
    evaluation_batches,
    num_chunks,
    training_batches,
)
from ohl_accel.data.crops import RandomResizedCrop
from ohl_accel.data.images import Images, Tally
from ohl_accel.data.memory import GivenData
from ohl_accel.data.schema import Schema
from ohl_accel.data.splits import Data, open_data, open_images

__all__ = [
    "WAIT",
    "Batch",
    "Blocks",
    "Data",
    "GivenData",
    "Images",
    "RandomResizedCrop",
    "Schema",
    "Tally",
    "TrainingOrder",
    "ahead_on_device",
    "evaluation_batches",
    "num_chunks",
    "open_data",
    "open_images",
    "training_batches",
]
