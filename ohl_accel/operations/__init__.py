"""Search spaces, the transforms they consist of, batched kernels, and Pillow's reference for PIL images."""
