"""Heatmaps of probabilities relative to uniform, as SVG paths coloured by the page's CSS.

A colour stands for log2 of the ratio: the middle level is uniform, equal steps are equal factors. Blue is lost,
red is gained, which colour-blind readers can tell apart; uniform is bright on the light page and dark on the
dark one. Adjacent cells of one level are one rectangle, and all rectangles of a level are one path: 300 outer steps
stay small.

Shapes: R rows, C columns.
"""

import math
from dataclasses import dataclass

import torch
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, to_hex
from torch import Tensor

LEVELS = 33
_LIGHT = colormaps["RdBu_r"]
_DARK = LinearSegmentedColormap.from_list("dark", ["#9cd0ff", "#2f74b5", "#20252b", "#b54a2c", "#ffb793"])
_MARGIN = 0.06  # at both ends of a colour map, where neighbours are hard to tell apart
_NARROWEST, _WIDEST = 0.05, 3.0
_UNMEASURED = 1.0
"""Reach of the scale, at least, where it is not known what noise does: a factor of 2 has the full colour."""
_PALE = 3
"""How many times wider the scale is, on either side, than what noise does."""
_LOWEST = 2.0**-10


@dataclass(frozen=True)
class Scale:
    """The range of colours: the outermost ones stand for ratios of `2^-below` or less, and of `2^above` or more."""

    below: float
    above: float
    noise: tuple[float, float] | None = None
    """The band in which noise leaves the ratios; None if it was not measured."""

    @classmethod
    def of(cls, ratios: Tensor, noise: tuple[float, float] | None = None) -> "Scale":
        """Wide enough for the largest gain and for 95 % of all ratios, up to a factor of 8, and so wide that what noise
        does has at most a third of the full colour.

        The probability of an operation can fall towards 0; a scale down to that would leave the gains without colour.

        Args:
            ratios: all that are shown, relative to uniform.
            noise: the smallest and the largest ratio that noise alone reaches; None if it was not measured.
        """
        gain = float(ratios.max().log2())
        common = float(ratios.clamp_min(_LOWEST).log2().abs().quantile(0.95))
        reach = min(max(gain, common, _NARROWEST), _WIDEST)
        if noise is None:
            return cls(max(reach, _UNMEASURED), max(reach, _UNMEASURED))
        low, high = (math.log2(max(end, _LOWEST)) for end in noise)
        return cls(max(reach, -_PALE * low), max(reach, _PALE * high), noise)

    @property
    def ends(self) -> tuple[float, float]:
        """The ratios at both ends."""
        return 2**-self.below, 2**self.above

    def levels(self, ratios: Tensor) -> Tensor:
        """int64 of the same shape, 0 (lost) to 32 (gained); 16 is uniform."""
        logarithm = ratios.clamp_min(_LOWEST).log2()
        position = torch.where(logarithm < 0, logarithm / self.below, logarithm / self.above).clamp(-1, 1)
        return ((position + 1) / 2 * (LEVELS - 1)).round().long()


@dataclass(frozen=True)
class Heatmap:
    """A heatmap of C x R cells of side 1: an SVG path for every level that occurs."""

    columns: int
    rows: int
    paths: list[tuple[int, str]]


def heatmap(ratios_RC: Tensor, scale: Scale) -> Heatmap:
    """Draw ratios to uniform; NaN leaves a cell empty."""
    rows, columns = ratios_RC.shape
    parts: dict[int, list[str]] = {}
    for y, levels in enumerate(scale.levels(ratios_RC).where(~ratios_RC.isnan(), -1)):
        values, widths = torch.unique_consecutive(levels, return_counts=True)
        x = 0
        for level, width in zip(values.tolist(), widths.tolist(), strict=True):
            if level >= 0:
                parts.setdefault(level, []).append(f"M{x} {y}h{width}v1h-{width}z")
            x += width
    return Heatmap(columns, rows, [(level, "".join(parts[level])) for level in sorted(parts)])


def palette() -> list[tuple[str, str]]:
    """The colours of the levels on the light and on the dark page."""
    positions = torch.linspace(_MARGIN, 1 - _MARGIN, LEVELS, dtype=torch.float64).tolist()
    return [(to_hex(_LIGHT(position)), to_hex(_DARK(position))) for position in positions]
