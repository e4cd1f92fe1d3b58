"""Plots of benchmarks, trainings and calibrations."""

import numpy as np

from kst_jax import figures


def measured(side, dtype, times, mebibytes, flops):
    least, median, most = times
    return {
        "size": (side, 2 * side),
        "dtype": dtype,
        "attention": "plain",
        "min_s": least,
        "median_s": median,
        "max_s": most,
        "temporary_bytes": mebibytes * 2**20,
        "flops": flops,
    }


SWEEP = [  # not in the order of their sizes
    measured(32, "float32", (3.0, 4.0, 9.0), 70, 800),
    measured(16, "float32", (0.5, 0.6, 0.9), 20, 100),
    measured(16, "bfloat16", (0.1, 0.3, 0.4), 11, None),
    measured(32, "bfloat16", (1.5, 1.6, 2.0), 37, None),
]
PIXELS = [16 * 32, 32 * 64]


def test_scaling_figure_shows_time_with_its_spread():
    time, _ = figures.scaling_figure(SWEEP).axes
    bars = dict(zip(("float32", "bfloat16"), time.containers, strict=True))
    assert [bar.get_label() for bar in bars.values()] == [
        "float32, plain",
        "bfloat16, plain",
    ]
    for dtype, median, spread in (
        ("float32", [0.6, 4.0], [(0.5, 0.9), (3.0, 9.0)]),
        ("bfloat16", [0.3, 1.6], [(0.1, 0.4), (1.5, 2.0)]),
    ):
        line, _, (segments,) = bars[dtype]
        np.testing.assert_array_equal(line.get_xydata().T, [PIXELS, median])
        ends = [
            [(x, low), (x, high)] for x, (low, high) in zip(PIXELS, spread, strict=True)
        ]
        np.testing.assert_allclose(segments.get_segments(), ends, rtol=1e-12)
    assert time.get_ylabel() == "seconds per slice"
    legend = [text.get_text() for text in time.get_legend().texts]
    assert legend == ["float32, plain", "bfloat16, plain"]


def test_scaling_figure_brings_operations_to_the_time_of_the_largest_size():
    time, _ = figures.scaling_figure(SWEEP).axes
    known, unknown = (x.get_xydata().T for x in time.lines if x.get_linestyle() == "--")
    # An eighth of the operations, so an eighth of the four seconds.
    np.testing.assert_allclose(known, [PIXELS, [0.5, 4.0]], rtol=1e-12)
    assert np.isnan(unknown[1]).all()


def test_scaling_figure_shows_memory_in_megabytes_and_names_the_sizes():
    figure = figures.scaling_figure(SWEEP)
    _, memory = figure.axes
    assert memory.get_ylabel() == "temporary memory (MB)"
    for line, mebibytes in zip(memory.lines, ([20, 70], [11, 37]), strict=True):
        megabytes = np.array(mebibytes) * 1.048576
        np.testing.assert_allclose(line.get_xydata().T, [PIXELS, megabytes], rtol=1e-12)
    for ax in figure.axes:
        assert [ax.get_xscale(), ax.get_yscale()] == ["log", "log"]
        assert list(ax.get_xticks()) == PIXELS
        assert [x.get_text() for x in ax.get_xticklabels()] == ["16x32", "32x64"]


def test_learning_figure_shows_the_mean_of_the_last_twentieth():
    steps = np.arange(60.0)
    curves = {
        "KST": {"images": 8 * steps + 8, "psnr": steps**2},
        "U-Net": {"images": 4 * steps[:19] + 4, "psnr": -steps[:19]},  # too short
    }
    figure = figures.learning_figure(curves)
    mean, short = figure.axes[0].lines
    # Of (n - 1)^2, n^2 and (n + 1)^2, over the images seen after the last of them.
    expected = [8 * steps[2:] + 8, steps[1:-1] ** 2 + 2 / 3]
    np.testing.assert_allclose(mean.get_xydata().T, expected, rtol=1e-12)
    np.testing.assert_array_equal(short.get_xydata().T, list(curves["U-Net"].values()))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["KST", "U-Net"]


def test_learning_figure_tells_many_methods_apart():
    curve = {"images": [1, 2], "psnr": [20.0, 21.0]}
    figure = figures.learning_figure({f"method {n}": curve for n in range(25)})
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 25


def test_calibration_figure_plots_errors_over_deviations():
    deviation, error = np.array([0.01, 0.1]), np.array([0.02, 0.3])
    (ax,) = figures.calibration_figure(deviation, error).axes
    line, diagonal = ax.lines
    np.testing.assert_array_equal(line.get_xydata().T, [deviation, error])
    np.testing.assert_allclose(diagonal.get_xydata(), [[0.01, 0.01], [0.3, 0.3]])
