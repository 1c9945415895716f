"""The search space: elements, their batched kernels, and the same on PIL images by Pillow."""
