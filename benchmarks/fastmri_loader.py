r"""Times our input pipeline beside fastMRI's, on the same files, in turn.

fastMRI needs an environment of its own, and Linux:

    python3 -m venv .venv-torch
    .venv-torch/bin/pip install torch h5py pandas pyyaml requests tqdm
    .venv-torch/bin/pip install --no-deps fastmri==0.3.0
    .venv/bin/python -m benchmarks.fastmri_loader \
        --torch-python=.venv-torch/bin/python

(Without --no-deps it brings PyTorch Lightning too, which loading does not need.)

The files have the layout of fastMRI's single-coil knees, with random values: k-space
640x368 and `reconstruction_esc` 320x320, a temporary 2.3 MB for each slice. Slices come
in random order, in batches of four, with fastMRI's random masks at 4x:

* ours, `--config=fastmri_knee_4x`: crops the oversampled readout, normalises, and makes
  320x368 tokens, queries, k-space and a complex target;
* fastMRI's `SliceDataset`, with `UnetDataTransform` (a zero-filled magnitude image) or
  `VarNetDataTransform` (masked k-space; no Fourier transform, as its network does all),
  and PyTorch's `DataLoader`, with no worker process and with one.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from benchmarks import turns

ROWS, COLUMNS, SIDE = 640, 368, 320
BATCH = 4  # of the config
OTHERS = [
    (transform, workers) for transform in ("unet", "varnet") for workers in (0, 1)
]
HEADER = f"""<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>{ROWS}</x><y>{COLUMNS}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>320</x><y>184</y><z>4</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{SIDE}</x><y>{SIDE}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>160</x><y>160</y><z>4</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum>
<maximum>{COLUMNS - 1}</maximum><center>{COLUMNS // 2}</center>
</kspace_encoding_step_1></encodingLimits></encoding></ismrmrdHeader>"""
HEAD = (
    "pipeline | workers | slices/s, median (min-max) | ours over it, medians | "
    "CPU ms a slice, median (min-max) | it over ours, minima"
)


def write_scans(folder: Path, scans: int, slices: int) -> None:
    """Writes files in fastMRI's layout."""
    rng = np.random.default_rng(0)
    for number in range(scans):
        parts = rng.standard_normal((slices, ROWS, COLUMNS, 2), np.float32)
        target = np.abs(rng.standard_normal((slices, SIDE, SIDE), np.float32))
        with h5py.File(folder / f"file{number:07}.h5", "w") as file:
            file["ismrmrd_header"] = HEADER
            file["kspace"] = parts.view(np.complex64)[..., 0]
            file["reconstruction_esc"] = target
            file.attrs["max"] = target.max()


def main() -> None:
    """Command line."""
    options = turns.parser(__doc__, calls=9)
    add = options.add_argument
    add("--scans", type=int, default=4, help="files to write (4)")
    add("--slices", type=int, default=20, help="slices of each (20)")
    add("--batches", type=int, default=10, help="batches in each call (10)")
    given = options.parse_args()
    turns.use_cores(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_scans(Path(folder), given.scans, given.slices)
        common = [folder, str(given.batches), str(given.threads)]
        commands = [[sys.executable, "-m", "benchmarks.side_grain", *common]]
        other = [given.torch_python, "-m", "benchmarks.side_fastmri", *common]
        commands += [[*other, name, str(count), str(BATCH)] for name, count in OTHERS]
        with turns.started(commands) as sides:
            for _ in range(given.calls):
                for side in sides:
                    side.call()
    names = ["ours | 0", *(f"fastMRI, {name} | {count}" for name, count in OTHERS)]
    slices = given.batches * BATCH
    rates = [[slices / s for s in side.seconds] for side in sides]
    works = [[1000 * s / slices for s in side.cpu_seconds] for side in sides]
    print(turns.head(HEAD))
    for name, rate, work in zip(names, rates, works, strict=True):
        faster = statistics.median(rates[0]) / statistics.median(rate)
        cheaper = min(work) / min(works[0])
        cells = (
            turns.spread(rate),
            f"{faster:.2f}",
            turns.spread(work),
            f"{cheaper:.2f}",
        )
        print(f"| {' | '.join([name, *cells])} |")


if __name__ == "__main__":
    main()
