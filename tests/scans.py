"""Small scans of every kind, and writers of their files, for several tests."""

import h5py
import nibabel as nib
import numpy as np

from kst_jax.data.sources import open_source
from kst_jax.data_config import Selection

RNG = np.random.default_rng(0)
IMAGES = (RNG.normal(size=(4, 6, 5)) + 1j * RNG.normal(size=(4, 6, 5))).astype("c8")
KSPACE = np.stack(
    [np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x), norm="ortho")) for x in IMAGES]
).astype("c8")
CHANNELS = np.stack([KSPACE.real, KSPACE.imag], axis=-1)
VOLUME = RNG.uniform(50, 100, size=(5, 6, 7)).astype("f4")


def write_h5(path, kspace=KSPACE, **attrs):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file.attrs.update(attrs)


def write_nifti(path, volume=VOLUME, affine=None):
    nib.save(nib.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)


def write_npy(path, array=CHANNELS):
    np.save(path, array)


def with_nan(array, index):
    array = array.copy()
    array[index] = np.nan
    return array


def read_all(paths, **options):
    source = open_source(str(paths), Selection(**options))
    return [source[i] for i in range(len(source))]
