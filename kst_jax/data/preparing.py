"""Prepares one slice of a fully sampled scan for training or evaluation."""

import numpy as np

from kst_jax import tokens
from kst_jax.config import Config
from kst_jax.data import native, transforms
from kst_jax.data.native import Grid, View
from kst_jax.data.receivers import Receiver
from kst_jax.data.sources import Source
from kst_jax.patches import Layout


def grid_of(source: Source, number: int, config: Config) -> Grid:
    """Returns the sizes at which networks see a slice."""
    if not config.data.native:
        return Grid(config.data.size)
    return native.grid_of(source.entries[number][0].volume)


def view(
    number: int,
    source: Source,
    config: Config,
    grid: Grid,
    change: transforms.Change | None = None,
) -> View:
    """Reads a slice at its measured size, or cuts its field of view and resizes it.

    Args:
      number: of the slice in the source.
      source: slices.
      config: settings of the data.
      grid: sizes of the result.
      change: random change; only for slices that are resized.

    Raises:
      InputError: the slice cannot be used.
    """
    data = config.data
    if data.native:
        return native.view(source.sample(number), grid)
    item = source[number]
    # Before the crop, so that a rotation brings in real values from outside it.
    image = transforms.augment(item.image, change) if change else item.image
    image = transforms.field_of_view(image, data, f"{item.file}, slice {item.index}")
    image = transforms.fourier_resize(image, data.size, data.resize)
    # A measured image has a phase.
    return View(image, simulated=not item.image.imag.any())


def tokenise(
    view: View,
    mask: np.ndarray,
    layout: Layout,
    config: Config,
    rng: np.random.Generator,
    where: str,
    receiver: Receiver | None = None,
) -> tuple[dict[str, np.ndarray], transforms.Normalisation]:
    """Undersamples a slice; a simulated one gets its phase and noise first.

    Args:
      view: the slice.
      mask: (H, W), True where sampled.
      layout: of the tokens in the batch.
      config: settings of the data.
      rng: source of phase and noise.
      where: names the slice.
      receiver: the coils that see the slice; None for one coil.

    Returns:
      The fields of `tokens.Batch`, and the scaling.

    Raises:
      InputError: the slice cannot be scaled, or nothing of it is sampled.
    """
    image, maps, empty = view.image, None, view.empty
    if receiver is not None and receiver.simulated is not None and empty is not None:
        # The sensitivities of simulated coils spread k-space into these places.
        empty = np.zeros_like(empty)
    if receiver is not None:
        image, maps = _seen(view, config, rng, receiver), receiver.maps
        if config.data.coils.combine:
            image, maps = (maps.conj() * image).sum(axis=0), None
    elif view.simulated:
        image = transforms.simulate_scan(image, config.data.augment, rng)
    sampled = mask if empty is None else mask & ~empty
    channels, kspace, scaling = transforms.normalise(
        image, sampled, config.data.normalise, where, maps
    )
    if config.data.coils.target == "rss":
        magnitude = native.root_sum_of_squares(image) / np.float32(scaling.std)
        channels = np.stack([magnitude, 0 * magnitude], axis=-1)
    fields = tokens.tokenise(kspace, mask, layout, empty) | {"image": channels}
    if maps is not None:
        fields["maps"] = np.stack([maps.real, maps.imag], axis=-1)
    if config.train.error == "ssim":
        known = view.peak and view.peak / scaling.std
        peak = known or np.linalg.norm(channels, axis=-1).max()
        fields["peak"] = np.asarray(peak, np.float32)
    return fields, scaling


def _seen(
    view: View, config: Config, rng: np.random.Generator, receiver: Receiver
) -> np.ndarray:
    """Returns what virtual coils see of a slice, (V, H, W)."""
    image = view.image
    if view.simulated:
        image = transforms.simulate_scan(
            image, config.data.augment, rng, receiver.simulated
        )
    elif receiver.simulated is not None:
        image = receiver.simulated * image
    return np.tensordot(receiver.compression, image, 1)
