"""Receiver coils: their sensitivity maps, and their compression to fewer coils.

Coil c sees the image times its sensitivity map. Maps and k-space are complex arrays
(..., C, H, W) of C coils, H rows and W columns; k-space is centred and orthonormal as
in `kst_jax.fourier`, and zero where not measured. At each pixel, a set of maps is a
unit vector over the coils, or zero outside the object.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from kst_jax.errors import InputError, require
from kst_jax.fourier import ifft2c, to_channels, to_complex

# Power iterations, which separate eigenvalues 1 and 0.9 to 0.5 %. BART takes 30.
_ITERATIONS = 50


def espirit(
    kspace: np.ndarray | jax.Array,
    calibration: int = 24,
    kernel: int = 6,
    threshold: float = 0.001,
    crop: float = 0.8,
) -> jax.Array:
    """Estimates sensitivity maps from the fully sampled centre of k-space by ESPIRiT.

    M. Uecker et al., "ESPIRiT: an eigenvalue approach to autocalibrating parallel MRI"
    (MRM 2014): the first set of maps. Options mean the same as BART's `ecalib`. The
    phase is that of the first virtual coil (`compression`), which becomes real.

    Args:
      kspace: complex (..., C, H, W); leading axes are slices of one scan, sampled
        alike. They are computed together and share the virtual coil.
      calibration: rows and columns of the centre to use, at most.
      kernel: rows and columns of the kernels.
      threshold: kernels whose singular value, squared, is below this part of the
        largest one's are noise.
      crop: maps are zero where the eigenvalue, 1 for consistent data, is lower.

    Returns:
      Maps, complex64 of the k-space's shape.

    Raises:
      InputError: the k-space is not complex (..., C, H, W), its fully sampled centre
        is smaller than two kernels, an option is out of range, or no pixel's eigenvalue
        reaches `crop`.
    """
    require(kernel >= 2, "kernel", kernel, "at least 2")
    require(0 <= threshold < 1, "threshold", threshold, "at least 0 and below 1")
    require(0 <= crop < 1, "crop", crop, "at least 0 and below 1")
    centre = calibration_region(kspace, calibration, least=2 * kernel)
    centre = (centre / np.abs(centre).max()).astype(np.complex64)
    flat = centre.reshape(-1, *centre.shape[-3:])
    # On a busy CPU, eigenvectors by several threads of LAPACK take 100 times longer.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        maps, eigenvalue = jax.block_until_ready(
            _eigenmaps(flat, kspace.shape[-2:], kernel, threshold)
        )
    if not (eigenvalue > crop).any():
        raise InputError(
            f"sensitivity maps are zero everywhere: no eigenvalue is above crop={crop} "
            f"(the largest is {eigenvalue.max():.2g}); check the k-space, or lower crop"
        )
    maps = jnp.where(eigenvalue[:, None] > crop, maps, 0)
    return _with_phase_of(compression(flat, 1), maps).reshape(kspace.shape)


def low_resolution_maps(
    kspace: np.ndarray | jax.Array, calibration: int = 24
) -> jax.Array:
    """Estimates maps quickly: low-resolution images over their root sum of squares.

    Unlike ESPIRiT's, they are not zero outside the object, where they are noise.

    Args:
      kspace: complex (..., C, H, W); leading axes are slices of one scan.
      calibration: rows and columns of the centre to use, at most; a Hann window covers
        them.

    Returns:
      Maps, complex64 of the k-space's shape, with the phase of `espirit`.

    Raises:
      InputError: the k-space is not complex (..., C, H, W), or has no fully sampled
        centre of at least 4 rows and columns.
    """
    centre = calibration_region(kspace, calibration, least=4)
    centre = (centre / np.abs(centre).max()).astype(np.complex64)
    reference = compression(centre.reshape(-1, *centre.shape[-3:]), 1)
    size, whole = centre.shape[-2:], kspace.shape[-2:]
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in size)).astype(np.float32)
    before = [w // 2 - n // 2 for n, w in zip(size, whole, strict=True)]
    pad = [(b, w - n - b) for b, n, w in zip(before, size, whole, strict=True)]
    centre = np.pad(centre * window, [(0, 0)] * (centre.ndim - 2) + pad)
    images = to_complex(ifft2c(to_channels(jnp.asarray(centre))))
    return _with_phase_of(reference, _normalised(images))


def calibration_region(
    kspace: np.ndarray | jax.Array, most: int, least: int
) -> np.ndarray:
    """Cuts the fully sampled rectangle out of the centre of k-space.

    Args:
      kspace: complex (..., C, H, W), zero where not measured.
      most: rows and columns of the result, at most.
      least: rows and columns needed.

    Returns:
      Complex (..., C, h, w); the rectangle of the largest area.

    Raises:
      InputError: the k-space is not complex (..., C, H, W), or fewer rows or columns
        than needed are fully sampled.
    """
    if kspace.ndim < 3 or not np.iscomplexobj(kspace):
        raise InputError(
            f"k-space is {kspace.shape}, {kspace.dtype}; sensitivity maps need complex "
            "k-space (coils, rows, columns)"
        )
    kspace = np.asarray(kspace)
    highest, widest = (min(most, n) for n in kspace.shape[-2:])
    measured = (_centre(kspace, highest, widest) != 0).any(-3)
    found = centre_of(measured.reshape(-1, highest, widest).all(0))
    if min(found) < least:
        raise InputError(
            f"sensitivity maps need {least} fully sampled rows and columns in the "
            f"centre of k-space, of which {found[0]} rows and {found[1]} columns were "
            "found; measure more calibration lines, give a calibration scan or maps, "
            "or use smaller kernels"
        )
    return _centre(kspace, *found)


def centre_of(mask: np.ndarray) -> tuple[int, int]:
    """Returns rows and columns of the largest complete centre of a mask (H, W)."""
    found, columns = (0, 0), mask.shape[1]
    for rows in range(1, len(mask) + 1):
        # More rows have as many complete columns, or fewer.
        while columns and not _centre(mask, rows, columns).all():
            columns -= 1
        found = max(found, (rows, columns), key=math.prod)
    return found


def _centre(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Cuts the centre of k-space (..., H, W) out, (..., rows, columns)."""
    row, column = (
        whole // 2 - size // 2
        for whole, size in zip(x.shape[-2:], (rows, columns), strict=True)
    )
    return x[..., row : row + rows, column : column + columns]


@functools.partial(jax.jit, static_argnames=("size", "kernel"))
def _eigenmaps(
    calibration: jax.Array, size: tuple[int, int], kernel: int, threshold: float
) -> tuple[jax.Array, jax.Array]:
    """Maps (S, C, H, W) and eigenvalues (S, H, W) of calibration data (S, C, h, w)."""
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda x: _eigenvectors(_kernels(x, kernel, threshold), size))(
            calibration
        )


def _kernels(calibration: jax.Array, kernel: int, threshold: float) -> jax.Array:
    """Kernels (J, C, k, k) that span the patches of (C, h, w); those of noise are 0."""
    coils, rows, columns = calibration.shape
    row, column = (
        np.arange(n - kernel + 1)[:, None] + np.arange(kernel) for n in (rows, columns)
    )
    patches = calibration[:, row[:, None, :, None], column[None, :, None, :]]
    patches = jnp.moveaxis(patches, 0, 2).reshape(-1, coils * kernel**2)
    # The Gram matrix of the patches is small for any number of coils, and its
    # eigenvectors cost a tenth of a singular value decomposition.
    energy, left = jnp.linalg.eigh(patches @ patches.conj().T)
    # Below a millionth, float32 holds no energy but rounding.
    kept = energy > jnp.maximum(threshold, 1e-6) * energy[-1]
    weight = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, energy, 1)), 0)
    spanning = (weight[None] * left).conj().T @ patches
    return spanning.reshape(-1, coils, kernel, kernel)


def _eigenvectors(
    kernels: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """First eigenvector (C, H, W) and eigenvalue (H, W), from kernels (J, C, k, k).

    Projecting all patches of k-space onto the span of the kernels multiplies images, at
    each pixel, by a matrix (C, C). It is a trigonometric polynomial of the position, so
    a grid of 2k - 1 points on each axis determines it, and Dirichlet's kernel
    interpolates to the others.
    """
    kernel = kernels.shape[-1]
    offsets, coarse = np.arange(kernel), np.arange(2 * kernel - 1) / (2 * kernel - 1)
    wave = np.exp(2j * np.pi * coarse[:, None] * offsets).astype(np.complex64)
    spectra = jnp.einsum("jcab,ga,hb->ghcj", kernels, wave, wave)
    matrix = jnp.einsum("ghcj,ghdj->gcdh", spectra, spectra.conj()) / kernel**2
    rows, columns = (_dirichlet(n, kernel) for n in size)
    matrix = jnp.einsum("gcdh,wh->gcdw", matrix, columns)

    # Row by row, as one row's matrices fit into a processor's cache.
    def row(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _power_iteration(jnp.einsum("g,gcdw->cdw", weights, matrix))

    vectors, eigenvalue = jax.lax.map(row, rows)
    return jnp.moveaxis(vectors, 0, 1), eigenvalue


def _dirichlet(size: int, kernel: int) -> jax.Array:
    """Interpolates from 2k - 1 points of a period to `size` centred ones."""
    count = 2 * kernel - 1
    fine, coarse = (np.arange(size) - size // 2) / size, np.arange(count) / count
    lag = np.arange(1, kernel)
    distance = 2 * np.pi * (fine[:, None] - coarse)
    waves = np.cos(distance[..., None] * lag).sum(-1)
    return jnp.asarray((1 + 2 * waves) / count, jnp.float32)


def _power_iteration(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First eigenvectors (C, W) and eigenvalues (W) of Hermitian matrices (C, C, W)."""

    def norm(vector: jax.Array) -> jax.Array:
        return jnp.sqrt((vector.real**2 + vector.imag**2).sum(0))

    def multiply(_: int, vector: jax.Array) -> jax.Array:
        vector = (matrix * vector[None]).sum(1)
        return vector / jnp.maximum(norm(vector), 1e-12)[None]

    # The column of the strongest coil is never orthogonal to the eigenvector.
    strongest = jnp.argmax(jnp.diagonal(matrix).real, axis=-1)
    vector = jnp.take_along_axis(matrix, strongest[None, None], axis=1)[:, 0]
    vector = jax.lax.fori_loop(0, _ITERATIONS, multiply, vector)
    return vector, norm((matrix * vector[None]).sum(1))


def _normalised(maps: jax.Array) -> jax.Array:
    """Divides (..., C, H, W) by its root sum of squares over coils; zero stays zero."""
    norm = jnp.sqrt((jnp.abs(maps) ** 2).sum(-3, keepdims=True))
    return maps / jnp.where(norm == 0, 1, norm)


def _with_phase_of(virtual_1xC: np.ndarray, maps: jax.Array) -> jax.Array:
    """Gives maps (..., C, H, W) the phase that makes a virtual coil real."""
    seen = compress(maps, virtual_1xC)
    size = jnp.abs(seen)
    turn = jnp.where(size == 0, 1, seen.conj() / jnp.where(size == 0, 1, size))
    return maps * turn


def compression(kspace: np.ndarray | jax.Array, coils: int) -> np.ndarray:
    """Finds the virtual coils that keep most of a volume's energy (SVD compression).

    M. Buehrer et al., "Array compression for MRI with large coil arrays" (MRM 2007).

    Args:
      kspace: complex (..., C, H, W), or images: all slices of a scan.
      coils: virtual coils V, at most C.

    Returns:
      Matrix (V, C), complex64, with orthonormal rows, for `compress`. Rows are ordered
      by singular value; the largest weight of each is real and positive.

    Raises:
      InputError: there are fewer coils than that.
    """
    total = kspace.shape[-3]
    require(1 <= coils <= total, "virtual coils", coils, f"1 to {total}, as measured")
    gram = np.zeros((total, total), np.complex128)
    for one in np.asarray(kspace).reshape(-1, total, *kspace.shape[-2:]):
        flat = one.reshape(total, -1)
        gram += flat @ flat.conj().T
    vectors = np.linalg.eigh(gram)[1][:, ::-1].T.conj()[:coils]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], axis=1)
    return (vectors * largest.conj() / np.abs(largest)).astype(np.complex64)


def compress(kspace: np.ndarray | jax.Array, matrix: np.ndarray) -> jax.Array:
    """Combines coils (..., C, H, W) to virtual ones (..., V, H, W) by a matrix (V, C).

    Images, k-space and maps are compressed alike. Maps lose the part of their norm that
    the virtual coils do not see.
    """
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("vc,...chw->...vhw", matrix, kspace)
