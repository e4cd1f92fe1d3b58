"""Writers of small scans off the grid, by plain sums over pixels."""

import numpy as np

from kst_jax import trajectories
from kst_jax.birdcage import birdcage
from tests import mrd_files

SHAPE = (24, 24)
MAPS = birdcage(3, SHAPE, 3)
# 20 spokes of 48 samples, 1.2 times undersampled.
POINTS = trajectories.radial(SHAPE, 1.2)
# A readout that is oversampled twice; as many phase encodings as there are spokes.
SIZES = {
    "trajectory": "radial",
    "encoded": (48, 20),
    "field": (480, 480),
    "recon": SHAPE,
    "shown": (240, 240),
}


def image():
    """A smooth complex object that looks different from every side."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]

    def blob(row, column, width, height):
        return height * np.exp(
            -((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2)
        )

    magnitude = blob(11, 12, 4, 1) + blob(6, 14, 1.5, 1) + blob(14, 6, 1.5, 2)
    return magnitude * np.exp(0.1j * rows)


def samples(images_CxHxW, points_RxSx2):
    """Orthonormal samples (C, R, S), straight from the definition."""
    phases = [
        np.exp(
            -2j * np.pi * points_RxSx2[..., axis, None] * (np.arange(n) - n // 2) / n
        )
        / np.sqrt(n)
        for axis, n in enumerate(images_CxHxW.shape[-2:])
    ]
    return np.einsum("chw,rsh,rsw->crs", images_CxHxW, *phases).astype("c8")


def readouts(data_CxRxS, points_RxSx2, flags=(), **changed):
    """Acquisitions that carry their trajectory."""
    points = np.asarray(points_RxSx2, "f4")
    return [
        mrd_files.line(data_CxRxS[:, n], n, flags, points[n], **changed)
        for n in range(len(points))
    ]


def write_mrd(path, acquisitions, **sizes):
    return mrd_files.write(path, acquisitions, mrd_files.header(**SIZES | sizes))


def write_cfl(path, array):
    """Writes a pair as BART does: the first dimension changes fastest."""
    words = " ".join(map(str, array.shape))
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{words}\n")
    path.write_bytes(np.asarray(array).astype("<c8").tobytes(order="F"))
    return path


def write_bart(folder, data_SxCxRxS, points_RxSx2):
    """Writes k-space.cfl and trajectory.cfl."""
    spread = np.moveaxis(data_SxCxRxS, (3, 2, 1, 0), (0, 1, 2, 3))
    sizes = (1, *spread.shape[:3], *[1] * 9, spread.shape[3])
    kspace = write_cfl(folder / "kspace.cfl", spread.reshape(sizes))
    flat = np.zeros((*points_RxSx2.shape[:2], 1))
    points = np.concatenate([points_RxSx2, flat], axis=-1)
    return kspace, write_cfl(folder / "trajectory.cfl", points.transpose(2, 1, 0))
