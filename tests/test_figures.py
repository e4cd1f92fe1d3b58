import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation

from kst_jax import figures, metrics
from kst_jax.errors import InputError

SHAPE = (2, 24, 16)


def reconstructions():
    rng = np.random.default_rng(0)
    target = rng.uniform(size=SHAPE) * np.array([1.0, 50.0])[:, None, None]
    noise = rng.normal(size=SHAPE) * np.array([1.0, 50.0])[:, None, None]
    methods = {
        "Zero-filled": target + 0.3 * noise,
        "U-Net": target + 0.1 * noise,
        "KST": target + 0.01 * noise,
    }
    mask = rng.uniform(size=SHAPE) < 0.25
    return methods, target, mask


def image_of(ax):
    (image,) = ax.images
    return image


def grid_of(figure, rows, columns):
    """The axes of a figure, image by image, and what else it has."""
    axes = figure.axes[: rows * columns]
    return np.array(axes, object).reshape(rows, columns), figure.axes[rows * columns :]


@pytest.fixture
def fig2():
    return figures.reconstruction_figure(*reconstructions())


def test_reconstruction_figure_shows_every_image_in_its_place(fig2):
    methods, target, mask = reconstructions()
    axes, rest = grid_of(fig2, 4, 4)
    assert len(rest) == 1  # the colour scale
    names = [ax.get_ylabel() for ax in axes[:, 0]]
    assert names == ["Target", "Zero-filled", "U-Net", "KST"]
    span = np.ptp(target, axis=(1, 2), keepdims=True)
    errors = [np.abs(x - target) / span for x in methods.values()]
    for i in range(2):
        images, beside = axes[:, 2 * i], axes[:, 2 * i + 1]
        for ax, stack in zip(images, [target, *methods.values()], strict=True):
            np.testing.assert_array_equal(image_of(ax).get_array(), stack[i])
        for ax, stack in zip(beside, [mask, *errors], strict=True):
            shown = image_of(ax).get_array()
            np.testing.assert_allclose(shown, stack[i], rtol=1e-12)


def test_all_errors_share_one_scale_that_the_worst_method_sets(fig2):
    axes, (bar,) = grid_of(fig2, 4, 4)
    scales = {image_of(ax).get_clim() for ax in axes[1:, 1::2].flat}
    ((low, high),) = scales
    assert low == 0
    worst = max(image_of(ax).get_array().max() for ax in axes[1, 1::2])
    assert 0.8 * worst < high <= worst
    assert bar.get_ylim() == (low, high)
    # Brighter means higher error: the colour map rises in luminance all the way.
    colours = image_of(axes[1, 1]).cmap(np.linspace(0, 1, 50))
    assert np.all(np.diff(colours[:, :3] @ [0.2126, 0.7152, 0.0722]) > 0)


def test_images_of_a_slice_share_the_grey_scale_of_its_target(fig2):
    axes, _ = grid_of(fig2, 4, 4)
    for images in axes[:, ::2].T:
        scales = {image_of(ax).get_clim() for ax in images}
        ((low, high),) = scales
        target = image_of(images[0]).get_array()
        assert low == 0
        assert 0.9 * target.max() < high <= target.max()


def test_scores_stand_under_the_reconstruction_they_belong_to(fig2):
    methods, target, mask = reconstructions()
    axes, _ = grid_of(fig2, 4, 4)
    for row, x in enumerate(methods.values(), start=1):
        psnr, ssim = metrics.psnr(x, target), metrics.ssim(x, target)
        for i in range(2):
            expected = f"{psnr[i]:.2f} dB, SSIM {ssim[i]:.3f}"
            assert axes[row, 2 * i].get_xlabel() == expected
    assert {ax.get_xlabel() for ax in axes[1:, 1::2].flat} == {""}
    assert axes[0, 3].get_xlabel() == f"mask, {1 / mask[1].mean():.1f}x"


def test_images_fill_their_axes_and_the_scale_stands_beside_the_errors(fig2):
    fig2.draw_without_rendering()
    axes, (bar,) = grid_of(fig2, 4, 4)
    width, height = fig2.get_size_inches()
    for ax in axes.flat:
        box = ax.get_position(original=False)
        np.testing.assert_allclose(box.width * width, 1.5)
        np.testing.assert_allclose(box.height * height, 1.5 * 24 / 16)
    scale, top, bottom = (ax.get_position() for ax in (bar, axes[1, -1], axes[-1, -1]))
    assert (scale.y0, scale.y1) == pytest.approx((bottom.y0, top.y1))
    assert top.x1 < scale.x0 < scale.x1 < 1


def test_a_trajectory_has_the_size_of_an_image():
    methods, target, _ = reconstructions()
    corners = np.array([[-12.0, -8.0], [12.0, 8.0], [0.0, 3.5]])
    figure = figures.reconstruction_figure(methods, target, np.stack([corners] * 2))
    axes, _ = grid_of(figure, 4, 4)
    image, trajectory = axes[0, :2]
    assert trajectory.get_xlim() == image.get_xlim()
    assert trajectory.get_ylim() == image.get_ylim()
    np.testing.assert_array_equal(
        trajectory.lines[0].get_xydata(), [[0, 0], [16, 24], [11.5, 12]]
    )


def test_further_slices_stand_below():
    methods, target, mask = reconstructions()
    four = np.array([0, 1, 0, 1])
    image = methods["KST"][four]
    figure = figures.reconstruction_figure({"KST": image}, target[four], mask[four])
    axes, _ = grid_of(figure, 4, 6)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["Target", "KST"] * 2
    for slice_, (row, column) in enumerate([(0, 0), (0, 2), (0, 4), (2, 0)]):
        shown = [image_of(ax).get_array() for ax in axes[row : row + 2, column]]
        np.testing.assert_array_equal(shown, [target[four[slice_]], image[slice_]])
    assert not any(ax.axison or ax.images for ax in axes[2:, 2:].flat)


def test_the_scale_of_small_errors_fits_with_its_text():
    methods, target, mask = reconstructions()
    figure = figures.reconstruction_figure({"U-Net": methods["U-Net"]}, target, mask)
    figure.draw_without_rendering()
    *_, bar = figure.axes
    assert any(len(tick.get_text()) == 4 for tick in bar.get_yticklabels())  # 0.05
    assert bar.get_tightbbox().x1 <= figure.bbox.x1


def test_a_figure_of_three_slices_is_as_wide_as_a_page_whatever_the_methods():
    methods, target, mask = reconstructions()
    three = np.array([0, 1, 0])
    many = {f"method {i}": methods["KST"][three] for i in range(12)}
    figure = figures.reconstruction_figure(many, target[three], mask[three])
    assert 9 < figure.get_figwidth() < 11


def test_perfect_reconstructions_can_be_shown(tmp_path):
    _, target, mask = reconstructions()
    figure = figures.reconstruction_figure({"Perfect": target}, target, mask)
    figures.save(figure, tmp_path / "perfect.png")
    assert "inf dB, SSIM 1.000" in [ax.get_xlabel() for ax in figure.axes]


def test_images_of_another_shape_are_refused():
    _, target, mask = reconstructions()
    with pytest.raises(InputError, match="cannot be compared"):
        figures.reconstruction_figure({"KST": target[:, :-1]}, target, mask)


def stages():
    rng = np.random.default_rng(1)
    images = {
        "LR": rng.uniform(size=(9, 8)),
        "Upsampled": rng.uniform(size=(18, 16)),
        "Target": 3 * rng.uniform(size=(18, 16)),
    }
    spectra = {name: 10.0 ** rng.uniform(-6, 2, x.shape) for name, x in images.items()}
    return images, spectra


def test_stages_figure_shows_images_above_their_spectra():
    images, spectra = stages()
    axes, rest = grid_of(figures.stages_figure(images, spectra), 2, 3)
    assert rest == []
    assert [ax.get_title() for ax in axes[0]] == [
        "LR\n9 x 8",
        "Upsampled\n18 x 16",
        "Target\n18 x 16",
    ]
    for ax, image in zip(axes[0], images.values(), strict=True):
        np.testing.assert_array_equal(image_of(ax).get_array(), image)
    for ax, spectrum in zip(axes[1], spectra.values(), strict=True):
        share = spectrum / np.percentile(spectrum, 99.9)
        expected = np.log10(np.maximum(share, 1e-3))
        np.testing.assert_allclose(image_of(ax).get_array(), expected, rtol=1e-12)
        assert image_of(ax).get_clim() == (-3, 0)


def test_all_stages_have_the_grey_scale_of_the_target():
    images, spectra = stages()
    axes, _ = grid_of(figures.stages_figure(images, spectra), 2, 3)
    white = np.percentile(images["Target"], 99.8)
    assert white > 2 * images["Upsampled"].max()
    assert [image_of(ax).get_clim() for ax in axes[0]] == [(0, white)] * 3


def test_a_low_resolution_spectrum_lies_in_the_centre_of_k_space():
    images, spectra = stages()
    axes, _ = grid_of(figures.stages_figure(images, spectra), 2, 3)
    for ax in axes[1]:
        assert ax.get_xlim() == (-8.5, 7.5)
        assert ax.get_ylim() == (8.5, -9.5)  # rows run downwards
    low, full = (image_of(ax).get_extent() for ax in axes[1, :2])
    # Zero frequency is sample n // 2: pixel centres lie on whole frequencies.
    assert tuple(low) == (-4.5, 3.5, 4.5, -4.5)
    assert tuple(full) == (-8.5, 7.5, 8.5, -9.5)


def test_an_empty_spectrum_can_be_shown():
    images, spectra = stages()
    spectra["LR"] = np.zeros_like(spectra["LR"])
    axes, _ = grid_of(figures.stages_figure(images, spectra), 2, 3)
    assert np.all(image_of(axes[1, 0]).get_array() == -3)


def test_attention_figure_marks_queries_and_leaves_gaps_blank():
    rng = np.random.default_rng(2)
    encoder, decoder = rng.uniform(size=(2, 3, 10, 12))
    encoder[:, rng.uniform(size=(10, 12)) < 0.5] = np.nan
    rows = [
        figures.AttentionMaps("Encoder", encoder, (2, 9), "red"),
        figures.AttentionMaps("HR decoder", decoder, (7.5, 3.25), "blue"),
    ]
    axes, rest = grid_of(figures.attention_figure(rows), 2, 3)
    assert rest == []
    assert [ax.get_title() for ax in axes[0]] == ["Head 1", "Head 2", "Head 3"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["Encoder", "HR decoder"]
    for row_axes, row in zip(axes, rows, strict=True):
        for ax, weights in zip(row_axes, row.maps, strict=True):
            shown = image_of(ax).get_array()
            np.testing.assert_array_equal(np.ma.filled(shown, np.nan), weights)
            white = np.percentile(weights[np.isfinite(weights)], 99.5)
            assert image_of(ax).get_clim() == (0, white)
            (arrow,) = ax.findobj(Annotation)
            assert arrow.xy == row.query[::-1]
            assert arrow.arrow_patch.get_edgecolor() == to_rgba(row.arrow)


def test_coils_show_their_magnitude_and_phase():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 5, 7)) + 1j * rng.normal(size=(3, 5, 7))
    maps[0, 2, 2] = 0
    axes, _ = grid_of(figures.coils_figure(maps), 2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["Coil 1", "Coil 2", "Coil 3"]
    for column, one in zip(axes.T, maps, strict=True):
        magnitude, phase = (image_of(ax).get_array() for ax in column)
        np.testing.assert_allclose(magnitude, np.abs(one))
        seen = one != 0
        np.testing.assert_allclose(np.exp(1j * phase[seen]), one[seen] / abs(one[seen]))
        assert (np.isnan(np.ma.filled(phase, np.nan)) == (one == 0)).all()


def test_deviations_stand_between_images_and_errors_and_share_their_scale():
    methods, target, _ = reconstructions()
    image, deviation = methods["U-Net"], 0.05 * target
    figure = figures.deviation_figure(image, deviation, target)
    axes, rest = grid_of(figure, 3, 2)
    assert len(rest) == 1  # the colour scale
    assert [ax.get_ylabel() for ax in axes[:, 0]] == [
        *("Reconstruction", "Standard deviation", "Error"),
    ]
    largest = target.max(axis=(1, 2), keepdims=True)
    wanted = [image, deviation / largest, np.abs(image - target) / largest]
    for row, stack in zip(axes, wanted, strict=True):
        for ax, one in zip(row, stack, strict=True):
            np.testing.assert_allclose(image_of(ax).get_array(), one, rtol=1e-12)
    (worst,) = {image_of(ax).get_clim() for ax in axes[1:].flat}
    assert worst == (0, max(np.percentile(x, 99.8) for x in wanted[1:]))


def test_deviations_of_a_scan_without_target_have_no_errors():
    _, target, _ = reconstructions()
    axes, _ = grid_of(figures.deviation_figure(target, 0.1 * target), 2, 2)
    shown = [image_of(ax).get_array() for ax in axes[1]]
    largest = target.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(shown, 0.1 * target / largest, rtol=1e-12)


def test_deviations_of_an_empty_slice_can_be_shown():
    nothing = np.zeros(SHAPE)
    figures.deviation_figure(nothing, nothing)


def test_every_head_has_its_own_scale():
    maps = np.ones((2, 4, 4)) * np.array([1.0, 100.0])[:, None, None]
    row = figures.AttentionMaps("Encoder", maps, (1, 1), "red")
    axes, _ = grid_of(figures.attention_figure([row]), 1, 2)
    assert [image_of(ax).get_clim() for ax in axes[0]] == [(0, 1), (0, 100)]


@pytest.mark.parametrize("query", [(0, 0), (0, 19), (19, 0), (19, 19), (10, 10)])
def test_arrows_stay_inside_their_map(query):
    row = figures.AttentionMaps("Encoder", np.ones((1, 20, 20)), query, "red")
    figure = figures.attention_figure([row])
    (ax,) = figure.axes
    (arrow,) = ax.findobj(Annotation)
    points = figure.dpi / 72
    tail = ax.transData.transform(arrow.xy) + points * np.array(arrow.xyann)
    assert ax.get_window_extent().contains(*tail)


def test_save_writes_a_png(fig2, tmp_path):
    path = tmp_path / "figure.png"
    figures.save(fig2, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    pixels = imread(path)
    np.testing.assert_allclose(
        pixels.shape[1::-1], 150 * fig2.get_size_inches(), atol=1
    )


def test_a_figure_that_fails_to_save_leaves_things_as_they_were(
    fig2, tmp_path, monkeypatch
):
    path = tmp_path / "figure.png"
    path.write_bytes(b"earlier")

    def fail(self, target, **kwargs):
        with open(target, "wb") as file:
            file.write(b"\x89PNG")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.save(fig2, path)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_pyplot_stays_out(tmp_path):
    program = """
import sys
import numpy as np
from kst_jax import figures

image = np.eye(8)[None]
figure = figures.reconstruction_figure({"KST": image}, image, image > 0)
figures.save(figure, sys.argv[1])
print("matplotlib.pyplot" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "figure.png")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr
