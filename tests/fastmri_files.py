"""Writers of files in fastMRI's layout, made from real volumes by numpy alone."""

import h5py
import numpy as np

from kst_jax.data import sources
from kst_jax.data_config import Selection

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>{encoded[0]}</x><y>{encoded[1]}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>280</x><y>140</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{matrix[0]}</x><y>{matrix[1]}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>140</x><y>140</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum>
<center>{centre}</center></kspace_encoding_step_1></encodingLimits>
</encoding></ismrmrdHeader>"""


def header(encoded, matrix, columns=None):
    """An ISMRMRD header; `columns` are the first measured one and the stop."""
    first, stop = columns or (0, encoded[1])
    return HEADER.format(
        encoded=encoded,
        matrix=matrix,
        last=stop - first - 1,
        centre=encoded[1] // 2 - first,
    )


def ifft(kspace):
    x = np.fft.ifft2(np.fft.ifftshift(kspace, axes=(-2, -1)), norm="ortho")
    return np.fft.fftshift(x, axes=(-2, -1))


def fft(image):
    x = np.fft.fft2(np.fft.ifftshift(image, axes=(-2, -1)), norm="ortho")
    return np.fft.fftshift(x, axes=(-2, -1))


def crop(image, shape):
    top, left = ((n - m) // 2 for n, m in zip(image.shape[-2:], shape, strict=True))
    return image[..., top : top + shape[0], left : left + shape[1]]


def slices_of(person, shape, slices=(0.3, 0.7)):
    """Magnitudes (S, h, w) of a bundled person, coarsened to the shape."""
    source = sources.open_source(person, Selection(slices=slices))
    images = [source[n].image.real for n in range(len(source))]
    side = max(*images[0].shape, 176)
    pads = [((side - n) // 2, side - n - (side - n) // 2) for n in images[0].shape]
    square = np.stack([np.pad(image, pads) for image in images])
    return np.abs(ifft(crop(fft(square), shape))) * np.sqrt(np.prod(shape)) / side


def measured(images, width, columns=None, noise=0.005, seed=0):
    """K-space (S, 2h, width) of magnitudes (S, h, w): smooth phase, noise.

    The readout is oversampled twice. The field of view is `width` pixels wide; columns
    outside the measured ones are zero.
    """
    rng = np.random.default_rng(seed)
    slices, rows, across = images.shape
    pads = [(0, 0), (rows // 2, rows - rows // 2)]
    left = (width - across) // 2
    wide = np.pad(images, [*pads, (left, width - across - left)])
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in wide.shape[1:]), indexing="ij")
    phase = sum(
        rng.normal(size=(slices, 1, 1)) * term for term in (y, x, x * y, x**2, y**2)
    )
    kspace = fft(wide * np.exp(1j * phase))
    spread = noise * images.max() * rng.normal(size=(2, *kspace.shape))
    kspace = kspace + spread[0] + 1j * spread[1]
    first, stop = columns or (0, width)
    kspace[..., :first] = kspace[..., stop:] = 0
    return kspace.astype(np.complex64)


def write(path, kspace, matrix, columns=None, mask=None, **attributes):
    """Writes a scan: with its targets, or with a mask as fastMRI's test files."""
    with h5py.File(path, "w") as file:
        file["ismrmrd_header"] = header(kspace.shape[-2:], matrix, columns)
        if mask is None:
            targets = np.abs(crop(ifft(kspace), matrix)).astype(np.float32)
            if several := kspace.ndim == 4:
                targets = np.linalg.norm(targets, axis=1)
            file["reconstruction_rss" if several else "reconstruction_esc"] = targets
            attributes = {"max": targets.max(), **attributes}
        else:
            file["mask"] = mask
            kspace = kspace * mask
        file["kspace"] = kspace.astype(np.complex64)
        file.attrs.update(attributes)
    return path
