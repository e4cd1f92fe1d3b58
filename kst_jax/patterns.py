"""What draws where a slice is sampled: masks of the grid, or trajectories off it."""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np


class Patterns(Protocol):
    """The patterns of one setting: `sampling.Sampler` or `TrajectorySampler`.

    A pattern is a mask (H, W) or a `trajectories.Trajectory`; its layout is a
    `patches.Layout` or a `readouts.ReadoutLayout`.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the images."""

    @property
    def buckets(self) -> tuple:
        """Layouts that training compiles a program for."""

    def at(self, shape: tuple[int, int]) -> Self:
        """Returns the same setting's patterns for images of another shape."""

    def random(self, rng: np.random.Generator) -> Any:
        """Draws a fresh pattern, for training."""

    def fixed(self, file: str, index: int, seed: int) -> Any:
        """Draws the pattern of one slice, the same in every evaluation."""

    def fixed_acceleration(self, file: str) -> float | None:
        """Returns the acceleration of a file's `fixed` patterns, if it is known."""

    def layout(self, patch: tuple[int, int], patterns: Sequence = ()) -> Any:
        """Returns the layout of tokens for patterns, or for any that can be drawn."""
