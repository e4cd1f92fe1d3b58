"""Places images and their text on a page, without gaps."""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from kst_jax.programs import files

DPI = 150
COLUMN = 1.5  # width of an image, in inches; so are the next two
GAP = 0.04
LINE = 0.2  # height of a line of text
TITLE: dict[str, Any] = {"fontsize": 9, "pad": 4}
NAME: dict[str, Any] = {"fontsize": 9, "labelpad": 4}
NAME_WIDTH = 20  # characters that fit beside an image
NOTE: dict[str, Any] = {"fontsize": 8, "labelpad": 3}
BLANK = "#3f5573"
_BESIDE = 3  # slices, with two images each, that fit across a page


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG, whole or, on failure, not at all."""
    with files.whole(pathlib.Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=DPI)


def grid(
    rows: int,
    columns: int,
    shape: Sequence[int],
    *,
    left: float = GAP,
    right: float = GAP,
    top: float = LINE,
    below: float = GAP,
) -> tuple[Figure, np.ndarray]:
    """Lays out images of one shape in rows, with room for text around them.

    Matplotlib's own layouts leave gaps beside axes of fixed aspect; this one is exact.

    Args:
      rows: number of rows.
      columns: number of columns.
      shape: height and width of the images in pixels.
      left: space in inches at the left edge.
      right: space in inches at the right edge.
      top: space in inches above the first row.
      below: space in inches below each row.
    """
    row = COLUMN * shape[0] / shape[1]
    width = left + columns * COLUMN + (columns - 1) * GAP + right
    height = top + rows * (row + below)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": left / width,
            "right": 1 - right / width,
            "top": 1 - top / height,
            "bottom": below / height,
            "wspace": GAP / COLUMN,
            "hspace": below / row,
        },
    )
    return figure, axes


def slice_blocks(
    names: Sequence[str], shape: Sequence[int]
) -> tuple[Figure, np.ndarray, np.ndarray]:
    """Lays out one block of axes per slice: named rows of two images each.

    Args:
      names: names of the rows.
      shape: number, height and width of the slices.

    Returns:
      The figure, all its axes, and the slices' axes (slices, names, 2).
    """
    slices, *shape = shape
    beside, bands = min(slices, _BESIDE), math.ceil(slices / _BESIDE)
    figure, axes = grid(
        bands * len(names),
        2 * beside,
        shape,
        left=LINE * max(name.count("\n") + 1 for name in names),
        right=0.7,
        top=GAP,
        below=LINE,
    )
    for ax, name in zip(axes[:, 0], [*names] * bands, strict=True):
        ax.set_ylabel(name, **NAME)
    by_band = axes.reshape(bands, len(names), beside, 2).swapaxes(1, 2)
    blocks = by_band.reshape(-1, len(names), 2)
    for ax in blocks[slices:].flat:
        ax.set_axis_off()
    return figure, axes, blocks[:slices]


def show(ax: Axes, image: np.ndarray, **kwargs: Any) -> AxesImage:
    """Shows an image without ticks or a frame."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.imshow(image, interpolation="nearest", **kwargs)


def add_scale(figure: Figure, image: AxesImage, column: np.ndarray, label: str) -> None:
    """Puts an image's colour scale to the right of a column, as tall as the column."""
    top, bottom = column[0].get_position(), column[-1].get_position()
    gap, width = 0.06 / figure.get_figwidth(), 0.1 / figure.get_figwidth()
    bar_ax = figure.add_axes((top.x1 + gap, bottom.y0, width, top.y1 - bottom.y0))
    bar = figure.colorbar(image, cax=bar_ax)
    bar.set_label(label, fontsize=8)
    bar_ax.tick_params(labelsize=7)


def window(target: np.ndarray) -> dict[str, Any]:
    """Chooses the grey scale of a target and of all images compared with it."""
    return {"cmap": "gray", "vmin": 0, "vmax": np.percentile(target, 99.8)}
