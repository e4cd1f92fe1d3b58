"""A run's logs: scalars as JSON lines, scalars and images for TensorBoard."""

import json
import os
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from kst_jax import parallel
from kst_jax.programs import files


class Logs:
    """Appends to `train.jsonl` and TensorBoard's event files in a folder.

    On resuming, it first drops rows of later steps, so that the file reads like that of
    an uninterrupted run. With several processes only the first one writes.
    """

    def __init__(self, workdir: Path, step: int):
        writes = parallel.is_first()
        self._path = workdir / "train.jsonl" if writes else Path(os.devnull)
        self._drop_after(step)
        self._file = self._path.open("a")
        self._board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1, write_to_disk=writes
        )

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()

    def scalars(self, step: int, values: dict) -> None:
        """Writes one row to the file and its numbers to TensorBoard."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)

    def image(self, step: int, image_HxW: np.ndarray) -> None:
        """Logs zero-filled, reconstruction and target as gray values in [0, 1]."""
        self._board.add_image(
            "zero-filled, reconstruction, target (normalised)", image_HxW[None], step
        )

    def _drop_after(self, step: int) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _is_row_up_to(line, step)]
        with files.whole(self._path) as partial:
            partial.write_text("".join(kept))


def _is_row_up_to(line: str, step: int) -> bool:
    """Returns whether to keep a row; not if it was cut off when a run died."""
    try:
        return json.loads(line)["step"] <= step
    except ValueError:
        return False
