"""Coil maps, against simulated coils, the phantom's truth and BART's numbers."""

import h5py
import numpy as np
import pytest

from kst_jax import coils
from kst_jax.birdcage import birdcage
from kst_jax.errors import InputError

SIZE = (48, 40)


def transform(images):
    """numpy's centred orthonormal Fourier transform."""
    axes = (-2, -1)
    kspace = np.fft.fft2(np.fft.ifftshift(images, axes=axes), norm="ortho")
    return np.fft.fftshift(kspace, axes=axes)


def phantom(size):
    """A head: an ellipse with a bright rim, two holes and a smooth phase."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    head = ((y / 0.8) ** 2 + (x / 0.65) ** 2 < 1) * 1.0
    head += (((y / 0.75) ** 2 + (x / 0.6) ** 2 > 1) & (head > 0)) * 1.0
    for side in (-1, 1):
        head -= 0.6 * (((y - 0.1) / 0.3) ** 2 + ((x - side * 0.2) / 0.12) ** 2 < 1)
    return head * np.exp(1j * (x + 0.5 * y**2)), head > 0


def scan(seed=1, count=5, size=SIZE):
    """K-space of simulated coils, their maps and where the head is."""
    image, head = phantom(size)
    maps = birdcage(seed, size, count)
    return transform(image * maps).astype(np.complex64), maps, head


def direction(a, b):
    """|<a, b>| / (|a| |b|) over coils, where both are non-zero."""
    a, b = np.asarray(a, np.complex128), np.asarray(b, np.complex128)
    size = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    product = np.abs((a.conj() * b).sum(0))
    return np.divide(product, size, out=np.zeros_like(size), where=size > 0)


def undersampled(kspace, lines):
    """Every third column, and some in the centre."""
    columns = kspace.shape[-1]
    kept = np.arange(columns) % 3 == 0
    kept[columns // 2 - lines // 2 : columns // 2 - lines // 2 + lines] = True
    return np.where(kept, kspace, 0)


def test_espirit_finds_simulated_maps():
    kspace, maps, head = scan()
    found = coils.espirit(undersampled(kspace, 16), calibration=20)
    assert found.shape == maps.shape
    assert found.dtype == np.complex64
    assert (direction(found, maps)[head] > 0.99).mean() > 0.97
    norm = np.linalg.norm(found, axis=0)
    np.testing.assert_allclose(norm[norm > 0], 1, atol=1e-5)


def test_maps_are_the_first_eigenvectors_at_each_pixel():
    """By definition: which maps give patches of k-space in the span of the kernels."""
    size, kernel, crop = (15, 16), 4, 0.97
    kspace = scan(size=size, count=3)[0]
    centre = kspace[:, 1:13, 2:14]
    patches = [
        centre[:, row : row + kernel, column : column + kernel].ravel()
        for row in range(9)
        for column in range(9)
    ]
    _, singular, kernels = np.linalg.svd(np.array(patches, np.complex128))
    kernels = kernels[: (singular**2 > 0.001 * singular[0] ** 2).sum()]
    kernels = kernels.reshape(-1, 3, kernel, kernel)
    found = np.asarray(coils.espirit(kspace, 12, kernel, crop=crop))
    kept = found.any(0)
    assert 0.2 < kept.mean() < 0.9
    for row, column in np.ndindex(size):
        places = (row - 7) / 15, (column - 8) / 16
        waves = (np.exp(2j * np.pi * np.arange(kernel) * place) for place in places)
        seen = np.einsum("jcab,a,b->jc", kernels, *waves) / kernel
        values, vectors = np.linalg.eigh(seen.T @ seen.conj())
        assert kept[row, column] == (values[-1] > crop)
        if kept[row, column]:
            product = found[:, row, column].conj() @ vectors[:, -1]
            assert abs(product) == pytest.approx(1, abs=1e-3)


def test_slices_of_a_volume_are_those_one_by_one_up_to_the_virtual_coil():
    volume = np.stack([scan(seed)[0] for seed in (1, 2)])
    together = np.asarray(coils.espirit(volume))
    for kspace, maps in zip(volume, together, strict=True):
        alone = np.asarray(coils.espirit(kspace))
        assert ((alone == 0) == (maps == 0)).all()
        seen = maps.any(0)
        assert direction(alone, maps)[seen].min() > 0.9999


def test_the_first_virtual_coil_is_real():
    kspace = scan()[0]
    for estimate in (coils.espirit, coils.low_resolution_maps):
        maps = np.asarray(estimate(kspace))
        centre = coils.calibration_region(kspace, 24, 12)
        seen = np.einsum("vc,chw->vhw", coils.compression(centre, 1), maps)[0]
        np.testing.assert_allclose(seen.imag, 0, atol=1e-5)
        assert seen.real.min() > -1e-5


def test_one_coil_has_the_map_one():
    kspace, _, head = scan(count=1)
    found = np.asarray(coils.espirit(kspace))
    np.testing.assert_allclose(found[0][head], 1, atol=1e-5)


def test_maps_end_where_the_object_does():
    kspace, _, head = scan()
    rng = np.random.default_rng(0)
    noise = 0.02 * rng.normal(size=(2, *kspace.shape))
    seen = np.asarray(coils.espirit(kspace + noise[0] + 1j * noise[1], crop=0.95))
    assert seen.any(0)[head].mean() > 0.97
    assert not seen.any(0)[[0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_quick_maps_are_low_resolution_images_over_their_root_sum_of_squares():
    kspace, maps, head = scan()
    found = np.asarray(coils.low_resolution_maps(undersampled(kspace, 16)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1, atol=1e-5)
    assert (direction(found, maps)[head] > 0.99).mean() > 0.9
    window = np.zeros(SIZE)
    window[12:36, 8:32] = np.outer(*[np.hanning(26)[1:-1]] * 2)
    blurred = np.fft.ifft2(np.fft.ifftshift(window * kspace, axes=(1, 2)))
    blurred = np.fft.fftshift(blurred, axes=(1, 2))
    signal = np.linalg.norm(blurred, axis=0)
    close = direction(coils.low_resolution_maps(kspace), blurred)
    assert close[signal > 0.01 * signal.max()].min() > 0.99999
    flat = transform(np.ones(SIZE) * maps).astype(np.complex64)
    assert direction(coils.low_resolution_maps(flat), maps)[8:-8, 8:-8].min() > 0.999


def test_calibration_is_the_largest_whole_rectangle():
    kspace = np.zeros((2, 30, 31), np.complex64)
    kspace[1, 5:25, 11:20] = 1  # rows -10 to 9, columns -4 to 4 about the centre
    assert coils.calibration_region(kspace, 24, 1).shape == (2, 20, 9)
    assert coils.calibration_region(kspace, 8, 1).shape == (2, 8, 8)
    kspace[:, 5] = 0
    assert coils.calibration_region(kspace, 24, 1).shape == (2, 19, 9)


@pytest.mark.parametrize(("lines", "rows"), [(0, 0), (7, 24)])
def test_too_few_calibration_lines_are_counted(lines, rows):
    kspace = undersampled(scan()[0], lines)
    found = f"need 12 .* {rows} rows and {lines} columns .* calibration"
    with pytest.raises(InputError, match=found) as error:
        coils.espirit(kspace)
    assert "\n" not in str(error.value)


def test_nothing_measured_in_the_centre():
    with pytest.raises(InputError, match="0 rows and 0 columns"):
        coils.low_resolution_maps(np.zeros((4, *SIZE), np.complex64))


def test_noise_has_no_maps():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 5, *SIZE))
    with pytest.raises(InputError, match=r"zero everywhere.*crop=0\.99"):
        coils.espirit(noise[0] + 1j * noise[1], crop=0.99, threshold=0.3)


@pytest.mark.parametrize(("shape", "kind"), [((40, 40), complex), ((4, 40, 40), float)])
def test_kspace_must_be_complex_with_coils(shape, kind):
    with pytest.raises(InputError, match="complex k-space \\(coils, rows, columns\\)"):
        coils.espirit(np.ones(shape, kind))


@pytest.mark.parametrize("option", [{"kernel": 1}, {"threshold": 1}, {"crop": -0.1}])
def test_options_out_of_range_are_named(option):
    with pytest.raises(InputError, match=next(iter(option))):
        coils.espirit(scan()[0], **option)


def test_compression_keeps_the_most_energy_in_order():
    volume = np.stack([scan(seed)[0] for seed in (1, 2)])
    matrix = coils.compression(volume, 3)
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(3), atol=1e-6)
    flat = volume.transpose(1, 0, 2, 3).reshape(5, -1)
    singular = np.linalg.svd(flat, compute_uv=False)
    energy = (np.abs(coils.compress(volume, matrix)) ** 2).sum((0, 2, 3))
    np.testing.assert_allclose(energy, singular[:3] ** 2, rtol=1e-4)
    largest = matrix[np.arange(3), np.abs(matrix).argmax(1)]
    np.testing.assert_allclose(largest.imag, 0, atol=1e-7)
    assert (largest.real > 0).all()


def test_all_virtual_coils_together_lose_nothing():
    kspace = scan()[0]
    matrix = coils.compression(kspace, 5)
    found = matrix.conj().T @ np.asarray(coils.compress(kspace, matrix)).reshape(5, -1)
    np.testing.assert_allclose(found.reshape(kspace.shape), kspace, atol=1e-4)


@pytest.mark.parametrize("count", [0, 6])
def test_virtual_coils_cannot_exceed_the_measured(count):
    with pytest.raises(InputError, match="1 to 5"):
        coils.compression(scan()[0], count)


def test_simulated_coils_differ_by_seed_and_combine_to_the_image():
    maps = birdcage(3, SIZE, 6)
    assert (maps == birdcage(3, SIZE, 6)).all()
    assert np.abs(maps - birdcage(4, SIZE, 6)).max() > 0.1
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-5)
    head = phantom(SIZE)[1]
    changes = np.abs(np.diff(maps, axis=1))[:, head[1:]]
    assert 0.01 < changes.max() < 0.15  # smooth, in magnitude and phase
    between = maps[0, head] * maps[3, head].conj()
    assert np.angle(between / between.mean()).std() > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_each_simulated_coil_is_strongest_somewhere_at_the_border(seed):
    maps = np.abs(birdcage(seed, SIZE, 4))
    strongest = maps.argmax(0)
    border = np.concatenate([strongest[[0, -1]].ravel(), strongest[:, [0, -1]].ravel()])
    shares = np.bincount(border, minlength=4) / len(border)
    assert shares.min() > 0.15  # the ring is whole: half of one gives less


def test_simulation_needs_a_coil():
    with pytest.raises(InputError, match="at least 1"):
        birdcage(0, SIZE, 0)


def complex_field(x):
    return x["real"] + 1j * x["imag"]


def phantom_scan(path):
    """The phantom's k-space (6, 96, 96) and the truth: maps and image."""
    with h5py.File(path) as file:
        dataset = file["dataset"]
        lines = dataset["data"][()]
        maps, image = (complex_field(dataset[name][0]) for name in ("csm", "phantom"))
    kspace = np.zeros((6, 96, 192), np.complex64)
    for line in lines:
        row = line["head"]["idx"]["kspace_encode_step_1"]
        kspace[:, row] = line["data"].view(np.complex64).reshape(6, 192)
    axes = (-2, -1)
    images = np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho")
    images = np.fft.fftshift(images, axes=axes)[..., 48:144]  # oversampled twice
    return transform(images).astype(np.complex64), maps, image


def test_espirit_recovers_the_maps_of_the_phantom(shared):
    kspace, maps, image = phantom_scan(shared / "data/mrd_full.h5")
    found = direction(coils.espirit(kspace), maps)[np.abs(image) > 0]
    assert (found > 0.99).mean() > 0.95


def test_espirit_agrees_with_bart_on_a_measured_head(shared, full_compilation):
    golden = np.load(shared / "goldens/bart_brain.npz")
    with h5py.File(shared / "data/brain_vfa_multicoil.h5") as file:
        kspace = file["kspace"][1] * golden["mask"]
    found = np.asarray(coils.espirit(kspace))
    head = golden["maps"].any(0)
    assert (found.any(0) == head).mean() > 0.99
    assert (direction(found, golden["maps"])[head] > 0.99).mean() > 0.98


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_complete_centre_of_a_mask(seed):
    """Against all rectangles about the middle."""
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 12)) < 0.97
    mask[3:6, 4:8] |= seed % 3 > 0
    sizes = [
        (rows, columns)
        for rows in range(1, 10)
        for columns in range(1, 13)
        if all(
            mask[4 - rows // 2 + y, 6 - columns // 2 + x]
            for y in range(rows)
            for x in range(columns)
        )
    ]
    areas = [rows * columns for rows, columns in sizes]
    assert np.prod(coils.centre_of(mask)) == max(areas, default=0)
    assert coils.centre_of(mask) in [*sizes, (0, 0)]
