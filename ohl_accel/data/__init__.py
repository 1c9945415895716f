"""The way of the data: rows (`source`), pixels (`images`), splits (`splits`), mini-batches (`batches`)."""

from ohl_accel.data.batches import (
    Batch,
    TrainingOrder,
    evaluation_batches,
    num_chunks,
    training_batches,
)
from ohl_accel.data.images import Images
from ohl_accel.data.splits import Data, Schema, open_data

__all__ = [
    "Batch",
    "Data",
    "Images",
    "Schema",
    "TrainingOrder",
    "evaluation_batches",
    "num_chunks",
    "open_data",
    "training_batches",
]
