"""fastMRI's side of `benchmarks.fastmri_loader`; needs fastmri and PyTorch.

    python -m benchmarks.side_fastmri FOLDER BATCHES THREADS TRANSFORM WORKERS SIZE

TRANSFORM is unet or varnet, SIZE the slices of a batch.
"""

import sys

import torch
from fastmri.data import SliceDataset
from fastmri.data.subsample import RandomMaskFunc
from fastmri.data.transforms import UnetDataTransform, VarNetDataTransform
from torch.utils.data import DataLoader, RandomSampler

from benchmarks import turns

_ENDLESS = 10**9  # slices; so no epoch ends


def main() -> None:
    """Command line."""
    folder, batches, threads, transform, workers, size = sys.argv[1:]
    torch.set_num_threads(int(threads))
    mask = RandomMaskFunc(center_fractions=[0.08], accelerations=[4])
    transforms = {
        "unet": UnetDataTransform("singlecoil", mask, use_seed=False),
        "varnet": VarNetDataTransform(mask, use_seed=False),
    }
    dataset = SliceDataset(folder, "singlecoil", transforms[transform])
    order = RandomSampler(dataset, replacement=True, num_samples=_ENDLESS)
    loader = DataLoader(dataset, int(size), sampler=order, num_workers=int(workers))
    stream = iter(loader)

    def call() -> None:
        for _ in range(int(batches)):
            next(stream)

    call()  # fills what is prepared ahead
    turns.serve(call)


if __name__ == "__main__":
    main()
