"""How to reconstruct scans and write their images."""

import dataclasses
from pathlib import Path

from kst_jax.data.off_grid import TrajectoryOptions
from kst_jax.reconstruct.inputs import Undersampling


@dataclasses.dataclass(frozen=True)
class Options:
    """How to reconstruct and write scans.

    Attributes:
      kind: format of the files, a key of `outputs.FORMATS`.
      phase: whether to write the phase too.
      checkpoint: "latest" or "best" of the run.
      batch_size: slices per call, over all devices.
      undersampling: the source of the masks, if not the scans themselves.
      trajectory: what the scans do not say of trajectories.
      uncertainty: folder of the evaluation that calibrates standard deviations; None
        writes none.
    """

    kind: str = "h5"
    phase: bool = False
    checkpoint: str = "latest"
    batch_size: int = 4
    undersampling: Undersampling = dataclasses.field(default_factory=Undersampling)
    trajectory: TrajectoryOptions = TrajectoryOptions()  # noqa: RUF009 (immutable)
    uncertainty: Path | None = None
