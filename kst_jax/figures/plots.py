"""Plots of a study or a benchmark: curves over sizes, images seen, deviations."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from kst_jax.figures import layout


def scaling_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots time and memory over image size, as measured by `kst_jax.benchmark`.

    The dashed line is the operation count, whose attention terms are the paper's
    O(ml + nl + l^2), scaled to the time of the largest size.

    Args:
      results: per image size: size, median_s, min_s, max_s, flops (None draws no dashed
        line) and temporary_bytes. Each pair of precision and attention gets a line.
    """
    figure = Figure(figsize=(8, 3.2), dpi=layout.DPI, layout="constrained")
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
    figure = Figure(figsize=(8, 3.2), dpi=layout.DPI, layout="constrained")
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


def calibration_figure(deviation_N: np.ndarray, error_N: np.ndarray) -> Figure:
    """Plots the errors of pixels over their predicted deviations.

    On the dashed line the two are equal.

    Args:
      deviation_N: root mean squares of deviations, by bins of pixels, relative to the
        largest target.
      error_N: of the errors of these pixels.
    """
    figure = Figure(figsize=(4.2, 3.6), dpi=layout.DPI, layout="constrained")
    ax = figure.subplots()
    ax.plot(deviation_N, error_N, marker="o", markersize=3)
    both = np.concatenate([deviation_N, error_N])
    ends = [both.min(), both.max()]
    ax.plot(ends, ends, "k--", linewidth=0.8, label="equal")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="predicted standard deviation / largest value",
        ylabel="root mean square error / largest value",
    )
    ax.minorticks_off()
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
    ax.tick_params(labelsize=8)
    ax.legend(fontsize=8)
    return figure
