"""The paper's figures, drawn with matplotlib from numpy arrays of magnitudes.

Every function returns a new `matplotlib.figure.Figure`. Without pyplot and its global
state, figures work in notebooks and without a display alike.
"""

import itertools
import math
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from kst_jax.metrics import psnr, ssim
from kst_jax.programs import files

_DPI = 150
_COLUMN = 1.5  # width of an image, in inches; so are the next two
_GAP = 0.04
_LINE = 0.2  # height of a line of text
_TITLE = {"fontsize": 9, "pad": 4}
_BESIDE = 3  # slices, with two images each, that fit across a page
_NAME = {"fontsize": 9, "labelpad": 4}
_NAME_WIDTH = 20  # characters that fit beside an image
_NOTE: dict[str, Any] = {"fontsize": 8, "labelpad": 3}
_DECADES = 3  # decades of a spectrum to show, down from its largest values
_BLANK = "#3f5573"


class AttentionMaps(NamedTuple):
    """The attention of one query, a row of `attention_figure`.

    Attributes:
      label: name of the row, such as "Encoder".
      maps: attention weights (K, H, W) of each head on the k-space grid, NaN where the
        grid has no key.
      query: row and column of the query on that grid.
      arrow: colour of the arrow that points at the query; the paper uses red for a
        sampled query (encoder) and blue for an unsampled one (high-resolution decoder).
    """

    label: str
    maps: np.ndarray
    query: tuple[float, float]
    arrow: str


def reconstruction_figure(
    methods: Mapping[str, np.ndarray], target_SxHxW: np.ndarray, sampling: np.ndarray
) -> Figure:
    """Compares reconstructions of a few slices, one method per row (paper Fig. 2).

    Each slice takes two columns; three slices stand side by side, further ones below.
    The first row shows the target and what was sampled. Every other row shows a
    method's image with its PSNR and SSIM, and its error map. The scores are those of
    the images shown, which need not be in a network's units. Errors are relative to the
    range (max - min) of the target's slice and share one colour scale; brighter means
    larger.

    Args:
      methods: name to magnitudes (S, H, W), in the order of the rows.
      target_SxHxW: magnitudes of the fully sampled slices, none of them constant.
      sampling: masks (S, H, W), True where k-space was sampled, or trajectories
        (S, N, 2), row then column, in units of 1 / field of view.

    Raises:
      InputError: images differ in shape from the target, or are too small for SSIM.
    """
    scores = {
        name: [np.asarray(score(x, target_SxHxW)) for score in (psnr, ssim)]
        for name, x in methods.items()
    }
    range_Sx1x1 = np.ptp(target_SxHxW, axis=(1, 2), keepdims=True)
    errors = {
        name: np.abs(x - target_SxHxW) / range_Sx1x1 for name, x in methods.items()
    }
    # With the maximum, a few extreme pixels would turn all others dark.
    worst = max(np.percentile(error, 99.8) for error in errors.values())

    names = ["Target", *(textwrap.fill(name, _NAME_WIDTH) for name in methods)]
    figure, axes, blocks = _slice_blocks(names, target_SxHxW.shape)
    slices = zip(blocks, target_SxHxW, sampling, strict=True)
    for i, (block, target, sampled) in enumerate(slices):
        (target_ax, sampling_ax), *pairs = block
        _show(target_ax, target, **_window(target))
        _show_sampling(sampling_ax, sampled, target.shape)
        for (image_ax, error_ax), (name, x) in zip(pairs, methods.items(), strict=True):
            _show(image_ax, x[i], **_window(target))
            psnrs, ssims = scores[name]
            image_ax.set_xlabel(f"{psnrs[i]:.2f} dB, SSIM {ssims[i]:.3f}", **_NOTE)
            shown = _show(error_ax, errors[name][i], cmap="inferno", vmin=0, vmax=worst)
    axes[0, 0].set_xlabel("scores of images as shown", **_NOTE)
    _add_scale(figure, shown, axes[1:, -1], "error / target range")
    return figure


def _show_sampling(axes: Axes, sampling: np.ndarray, shape: tuple[int, ...]) -> None:
    """Shows a mask (H, W), or a trajectory (N, 2) over the k-space of an image."""
    if sampling.dtype == bool:
        _show(axes, sampling, cmap="gray", vmin=0, vmax=1)
        axes.set_xlabel(f"mask, {1 / np.mean(sampling):.1f}x", **_NOTE)
        return
    _show(axes, np.zeros(shape), cmap="gray", vmin=0, vmax=1)
    row, column = (sampling + np.array(shape) // 2).T
    axes.plot(column, row, ".", color="white", markersize=1, markeredgewidth=0)
    axes.set_xlabel(f"trajectory, {len(sampling):,} samples", **_NOTE)


def stages_figure(
    images: Mapping[str, np.ndarray], spectra: Mapping[str, np.ndarray]
) -> Figure:
    """Shows each stage's reconstruction of one slice (paper Fig. 3).

    Upper row: the images, all in the grey scale of the last one. Lower row: their
    spectra on a log scale of three decades, at their true place in k-space, so a
    low-resolution spectrum fills only the centre.

    Args:
      images: name to magnitude image, of any size, in the order of the columns; the
        target last.
      spectra: the same names to magnitudes of the centred k-space.
    """
    *_, target = images.values()
    figure, axes = _grid(2, len(images), target.shape, left=_LINE, top=2 * _LINE)
    axes[0, 0].set_ylabel("Image", **_NOTE)
    axes[1, 0].set_ylabel("k-space", **_NOTE)
    largest = np.max([spectrum.shape for spectrum in spectra.values()], axis=0)
    for (image_ax, spectrum_ax), (name, image) in zip(
        axes.T, images.items(), strict=True
    ):
        rows, columns = image.shape
        image_ax.set_title(f"{name}\n{rows} x {columns}", **_TITLE)
        _show(image_ax, image, **_window(target))
        _show_spectrum(spectrum_ax, spectra[name], largest)
    return figure


def attention_figure(rows: Sequence[AttentionMaps]) -> Figure:
    """Shows where in k-space queries attend, one map per head (paper Fig. 4).

    Each map has its own scale; brighter means more attention, and positions without a
    key are blank. An arrow points at the query.

    Args:
      rows: the queries, all with the same number of heads.
    """
    heads, *grid = rows[0].maps.shape
    figure, axes = _grid(len(rows), heads, grid, left=_LINE)
    for head, ax in enumerate(axes[0]):
        ax.set_title(f"Head {head + 1}", **_TITLE)
    for row_axes, row in zip(axes, rows, strict=True):
        row_axes[0].set_ylabel(row.label, **_NOTE)
        for ax, weights in zip(row_axes, row.maps, strict=True):
            top = np.nanpercentile(weights, 99.5)
            _show(ax, weights, cmap="gray", vmin=0, vmax=top)
            ax.set_facecolor(_BLANK)
            _point_at(ax, row.query, row.arrow)
    return figure


def coils_figure(maps_CxHxW: np.ndarray) -> Figure:
    """Shows the complex sensitivity maps of coils: magnitudes above, phases below."""
    count, *grid = maps_CxHxW.shape
    figure, axes = _grid(2, count, grid, left=_LINE)
    axes[0, 0].set_ylabel("Magnitude", **_NOTE)
    axes[1, 0].set_ylabel("Phase", **_NOTE)
    for number, (above, below) in enumerate(axes.T):
        one = maps_CxHxW[number]
        above.set_title(f"Coil {number + 1}", **_TITLE)
        _show(above, np.abs(one), cmap="gray", vmin=0, vmax=1)
        phase = np.where(one == 0, np.nan, np.angle(one))
        _show(below, phase, cmap="twilight", vmin=-np.pi, vmax=np.pi)
        below.set_facecolor(_BLANK)
    return figure


def scaling_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots time and memory over image size, as measured by `kst_jax.benchmark`.

    The dashed line is the operation count, whose attention terms are the paper's
    O(ml + nl + l^2), scaled to the time of the largest size.

    Args:
      results: per image size: size, median_s, min_s, max_s, flops (None draws no dashed
        line) and temporary_bytes. Each pair of precision and attention gets a line.
    """
    figure = Figure(figsize=(8, 3.2), dpi=_DPI, layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name, group in itertools.groupby(
        results, lambda r: f"{r['dtype']}, {r['attention']}"
    ):
        line = sorted(group, key=lambda r: r["size"])
        pixels = [r["size"][0] * r["size"][1] for r in line]
        median, least, most, flops, used = (
            np.array([r[field] for r in line], float)
            for field in ("median_s", "min_s", "max_s", "flops", "temporary_bytes")
        )
        spread = median - least, most - median
        time.errorbar(pixels, median, spread, marker="o", label=name)
        time.plot(pixels, flops * median[-1] / flops[-1], "k--", linewidth=0.8)
        memory.plot(pixels, used / 1e6, marker="o", label=name)
        for ax in (time, memory):
            ax.set(xscale="log", yscale="log", xlabel="image")
            ax.minorticks_off()
            ax.set_xticks(pixels, ["x".join(map(str, r["size"])) for r in line])
            ax.tick_params(labelsize=8)
            ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
    time.set_ylabel("seconds per slice")
    memory.set_ylabel("temporary memory (MB)")
    time.legend(fontsize=8)
    return figure


def learning_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Plots training PSNR over the images seen, one line per method.

    Args:
      curves: name to `images` (number seen) and `psnr` (dB, of the current batch),
        drawn as a running mean over a twentieth of the training.
    """
    figure = Figure(figsize=(8, 3.2), dpi=_DPI, layout="constrained")
    ax = figure.subplots()
    looks = itertools.product(["-", "--", ":"], [f"C{n}" for n in range(10)])
    for (name, curve), (line, colour) in zip(
        curves.items(), itertools.cycle(looks), strict=False
    ):
        width = max(1, len(curve["psnr"]) // 20)
        mean = np.convolve(curve["psnr"], np.full(width, 1 / width), mode="valid")
        ax.plot(curve["images"][width - 1 :], mean, line, color=colour, label=name)
    ax.set(xlabel="training images seen", ylabel="PSNR in training (dB)")
    ax.tick_params(labelsize=8)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG, whole or, on failure, not at all."""
    with files.whole(pathlib.Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=_DPI)


def _grid(
    rows: int,
    columns: int,
    shape: Sequence[int],
    *,
    left: float = _GAP,
    right: float = _GAP,
    top: float = _LINE,
    below: float = _GAP,
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
    row = _COLUMN * shape[0] / shape[1]
    width = left + columns * _COLUMN + (columns - 1) * _GAP + right
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
            "wspace": _GAP / _COLUMN,
            "hspace": below / row,
        },
    )
    return figure, axes


def _slice_blocks(
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
    figure, axes = _grid(
        bands * len(names),
        2 * beside,
        shape,
        left=_LINE * max(name.count("\n") + 1 for name in names),
        right=0.7,
        top=_GAP,
        below=_LINE,
    )
    for ax, name in zip(axes[:, 0], [*names] * bands, strict=True):
        ax.set_ylabel(name, **_NAME)
    by_band = axes.reshape(bands, len(names), beside, 2).swapaxes(1, 2)
    blocks = by_band.reshape(-1, len(names), 2)
    for ax in blocks[slices:].flat:
        ax.set_axis_off()
    return figure, axes, blocks[:slices]


def _show(ax: Axes, image: np.ndarray, **kwargs: Any) -> AxesImage:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.imshow(image, interpolation="nearest", **kwargs)


def _add_scale(
    figure: Figure, image: AxesImage, column: np.ndarray, label: str
) -> None:
    """Puts an image's colour scale to the right of a column, as tall as the column."""
    top, bottom = column[0].get_position(), column[-1].get_position()
    gap, width = 0.06 / figure.get_figwidth(), 0.1 / figure.get_figwidth()
    bar_ax = figure.add_axes((top.x1 + gap, bottom.y0, width, top.y1 - bottom.y0))
    bar = figure.colorbar(image, cax=bar_ax)
    bar.set_label(label, fontsize=8)
    bar_ax.tick_params(labelsize=7)


def _window(target: np.ndarray) -> dict[str, Any]:
    """Chooses the grey scale of a target and of all images compared with it."""
    return {"cmap": "gray", "vmin": 0, "vmax": np.percentile(target, 99.8)}


def _show_spectrum(ax: Axes, spectrum: np.ndarray, largest: np.ndarray) -> None:
    top = max(np.percentile(spectrum, 99.9), np.finfo(np.float32).tiny)
    decades = np.log10(np.maximum(spectrum / top, 10.0**-_DECADES))
    rows, columns = spectrum.shape
    extent = (*_frequencies(columns), *_frequencies(rows)[::-1])
    _show(ax, decades, cmap="gray", vmin=-_DECADES, vmax=0, extent=extent)
    ax.set(xlim=_frequencies(largest[1]), ylim=_frequencies(largest[0])[::-1])
    ax.set_facecolor("black")


def _frequencies(n: int) -> tuple[float, float]:
    """Bounds the frequencies of a centred axis of n samples, plus half a sample."""
    return -(n // 2) - 0.5, n - n // 2 - 0.5


def _point_at(ax: Axes, query: tuple[float, float], colour: str) -> None:
    """Draws an arrow to (row, column) from the side with more room."""
    row, column = query
    rows, columns = ax.images[0].get_size()
    tail = (18 if column < columns / 2 else -18, -18 if row < rows / 2 else 18)
    outline = [patheffects.withStroke(linewidth=3, foreground="white")]
    ax.annotate(
        "",
        xy=(column, row),
        xytext=tail,
        textcoords="offset points",
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": 1.5,
            "shrinkA": 0,
            "shrinkB": 1,
            "path_effects": outline,
        },
    )
