"""What a run writes down: scalars as JSON lines and both kinds to TensorBoard."""

import json
import os
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from kst_jax import parallel
from kst_jax.programs import files


class Logs:
    """Appends to `train.jsonl` and TensorBoard's event files in a folder.

    Rows of steps after the one that a run resumes from are dropped first, so that
    the file reads like that of a run never interrupted. Of several processes only the
    first one writes.
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
        """Writes one row; TensorBoard gets its numbers."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)

    def image(self, step: int, image_HxW: np.ndarray) -> None:
        """Shows zero-filled, reconstruction and target, gray values in [0, 1]."""
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
    """False also for a row that was cut off when a run died."""
    try:
        return json.loads(line)["step"] <= step
    except ValueError:
        return False
