"""Numbers that the compiled kernels know elements by, those of numba and those of Triton."""

IDENTITY, CURVE, AFFINE, CONTRAST, AUTO_CONTRAST, EQUALIZE, COLOR, SHARPNESS = range(8)
"""What a step does."""

TABLE, SOLARIZE, POSTERIZE, BLEND = range(4)
"""How a curve may be computed: by its table or, in less time than it takes to look that up, by its formula."""
