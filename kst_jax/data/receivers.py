"""How coils see the slices of scans, read from the files of `sensitivities`."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from kst_jax.birdcage import birdcage
from kst_jax.errors import InputError


class Receiver(NamedTuple):
    """The virtual coils of one slice.

    Attributes:
      maps: estimated sensitivity maps (V, H, W), complex64.
      compression: matrix (V, C) from the coils to the virtual ones.
      simulated: true sensitivities (C, H, W) of simulated coils; None if the scan is of
        several coils.
    """

    maps: np.ndarray
    compression: np.ndarray
    simulated: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Receivers:
    """Files of estimated maps, one for a scan and a set of coils.

    Attributes:
      paths: by name of the scan and number of the set.
    """

    paths: dict[tuple[str, int], Path]

    def read(self, scan: str, coil_set: int, index: int) -> tuple:
        """Reads the maps (V, H, W) and the compression (V, C) of a slice.

        Raises:
          InputError: the file is damaged.
        """
        path = self.paths.get((scan, coil_set)) or self.paths[scan, 0]
        try:
            with h5py.File(path, locking=False) as file:
                row = int(np.searchsorted(file["slices"][:], index))
                return file["maps"][row], file["compression"][:]
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise InputError(
                f"{path}: the sensitivity maps cannot be read ({error}). Delete the "
                "file; the next run estimates them again."
            ) from error


def simulated(
    subject: str, coil_set: int, shape: tuple[int, int], count: int
) -> np.ndarray:
    """Simulates a set of coils (C, H, W) of a person; see `birdcage.birdcage`.

    Every person has a bank of sets, which only the label and the number determine.
    """
    digest = hashlib.sha256(f"{subject}:{coil_set}".encode()).digest()
    return birdcage(int.from_bytes(digest[:4], "big"), shape, count)
