"""Search spaces, the transforms they are made of, batched kernels, and the same on PIL images by Pillow."""
