"""The paper's figures, drawn from numpy arrays of magnitudes."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kst_jax.figures import layout
from kst_jax.metrics import psnr, ssim

_DECADES = 3  # decades of a spectrum to show, down from its largest values


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

    names = ["Target", *(textwrap.fill(name, layout.NAME_WIDTH) for name in methods)]
    figure, axes, blocks = layout.slice_blocks(names, target_SxHxW.shape)
    slices = zip(blocks, target_SxHxW, sampling, strict=True)
    for i, (block, target, sampled) in enumerate(slices):
        (target_ax, sampling_ax), *pairs = block
        layout.show(target_ax, target, **layout.window(target))
        _show_sampling(sampling_ax, sampled, target.shape)
        for (image_ax, error_ax), (name, x) in zip(pairs, methods.items(), strict=True):
            layout.show(image_ax, x[i], **layout.window(target))
            psnrs, ssims = scores[name]
            image_ax.set_xlabel(
                f"{psnrs[i]:.2f} dB, SSIM {ssims[i]:.3f}", **layout.NOTE
            )
            shown = layout.show(
                error_ax, errors[name][i], cmap="inferno", vmin=0, vmax=worst
            )
    axes[0, 0].set_xlabel("scores of images as shown", **layout.NOTE)
    layout.add_scale(figure, shown, axes[1:, -1], "error / target range")
    return figure


def _show_sampling(axes: Axes, sampling: np.ndarray, shape: tuple[int, ...]) -> None:
    """Shows a mask (H, W), or a trajectory (N, 2) over the k-space of an image."""
    if sampling.dtype == bool:
        layout.show(axes, sampling, cmap="gray", vmin=0, vmax=1)
        axes.set_xlabel(f"mask, {1 / np.mean(sampling):.1f}x", **layout.NOTE)
        return
    layout.show(axes, np.zeros(shape), cmap="gray", vmin=0, vmax=1)
    row, column = (sampling + np.array(shape) // 2).T
    axes.autoscale(False)  # beside an image of the same size
    dots: dict[str, Any] = {
        "color": "white",
        "markersize": 1,
        "markeredgewidth": 0,
        "clip_on": False,
    }
    axes.plot(column, row, ".", **dots)
    axes.set_xlabel(f"trajectory, {len(sampling):,} samples", **layout.NOTE)


def deviation_figure(
    image_SxHxW: np.ndarray,
    deviation_SxHxW: np.ndarray,
    target_SxHxW: np.ndarray | None = None,
) -> Figure:
    """Shows slices, what they do not know and, if targets are known, their errors.

    Deviations and errors are relative to the largest value of their slice, and share
    one colour scale; brighter means larger.

    Args:
      image_SxHxW: magnitudes.
      deviation_SxHxW: their predicted standard deviations.
      target_SxHxW: magnitudes of the fully sampled slices; None if unknown.
    """
    known = image_SxHxW if target_SxHxW is None else target_SxHxW
    largest_Sx1x1 = known.max(axis=(1, 2), keepdims=True)
    largest_Sx1x1 = np.where(largest_Sx1x1 > 0, largest_Sx1x1, 1)
    rows = {"Standard deviation": deviation_SxHxW / largest_Sx1x1}
    if target_SxHxW is not None:
        rows["Error"] = np.abs(image_SxHxW - target_SxHxW) / largest_Sx1x1
    worst = max(np.percentile(values, 99.8) for values in rows.values())
    count, *shape = image_SxHxW.shape
    figure, axes = layout.grid(
        len(rows) + 1, count, shape, left=layout.LINE, right=0.7, top=layout.GAP
    )
    for ax, image in zip(axes[0], image_SxHxW, strict=True):
        layout.show(ax, image, **layout.window(image))
    axes[0, 0].set_ylabel("Reconstruction", **layout.NAME)
    for row, (name, values) in zip(axes[1:], rows.items(), strict=True):
        row[0].set_ylabel(name, **layout.NAME)
        for ax, one in zip(row, values, strict=True):
            shown = layout.show(ax, one, cmap="inferno", vmin=0, vmax=worst)
    layout.add_scale(
        figure, shown, axes[1:, -1], "relative to the largest value of the slice"
    )
    return figure


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
    figure, axes = layout.grid(
        2, len(images), target.shape, left=layout.LINE, top=2 * layout.LINE
    )
    axes[0, 0].set_ylabel("Image", **layout.NOTE)
    axes[1, 0].set_ylabel("k-space", **layout.NOTE)
    largest = np.max([spectrum.shape for spectrum in spectra.values()], axis=0)
    for (image_ax, spectrum_ax), (name, image) in zip(
        axes.T, images.items(), strict=True
    ):
        rows, columns = image.shape
        image_ax.set_title(f"{name}\n{rows} x {columns}", **layout.TITLE)
        layout.show(image_ax, image, **layout.window(target))
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
    figure, axes = layout.grid(len(rows), heads, grid, left=layout.LINE)
    for head, ax in enumerate(axes[0]):
        ax.set_title(f"Head {head + 1}", **layout.TITLE)
    for row_axes, row in zip(axes, rows, strict=True):
        row_axes[0].set_ylabel(row.label, **layout.NOTE)
        for ax, weights in zip(row_axes, row.maps, strict=True):
            top = np.nanpercentile(weights, 99.5)
            layout.show(ax, weights, cmap="gray", vmin=0, vmax=top)
            ax.set_facecolor(layout.BLANK)
            _point_at(ax, row.query, row.arrow)
    return figure


def coils_figure(maps_CxHxW: np.ndarray) -> Figure:
    """Shows the complex sensitivity maps of coils: magnitudes above, phases below."""
    count, *grid = maps_CxHxW.shape
    figure, axes = layout.grid(2, count, grid, left=layout.LINE)
    axes[0, 0].set_ylabel("Magnitude", **layout.NOTE)
    axes[1, 0].set_ylabel("Phase", **layout.NOTE)
    for number, (above, below) in enumerate(axes.T):
        one = maps_CxHxW[number]
        above.set_title(f"Coil {number + 1}", **layout.TITLE)
        layout.show(above, np.abs(one), cmap="gray", vmin=0, vmax=1)
        phase = np.where(one == 0, np.nan, np.angle(one))
        layout.show(below, phase, cmap="twilight", vmin=-np.pi, vmax=np.pi)
        below.set_facecolor(layout.BLANK)
    return figure


def _show_spectrum(ax: Axes, spectrum: np.ndarray, largest: np.ndarray) -> None:
    top = max(np.percentile(spectrum, 99.9), np.finfo(np.float32).tiny)
    decades = np.log10(np.maximum(spectrum / top, 10.0**-_DECADES))
    rows, columns = spectrum.shape
    extent = (*_frequencies(columns), *_frequencies(rows)[::-1])
    layout.show(ax, decades, cmap="gray", vmin=-_DECADES, vmax=0, extent=extent)
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
