"""PyTorch's side of `benchmarks.pytorch_network`; needs PyTorch and numpy alone.

    python -m benchmarks.side_pytorch FOLDER

FOLDER is what `benchmarks.side_jax` wrote.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import turns
from benchmarks.kst_pytorch import KSpaceTransformer, channels

_STACKS = ("encoder", "lr_decoder", "hr_decoder")


def loss_of(
    images: dict[str, list[Tensor]], target: Tensor, train: SimpleNamespace
) -> Tensor:
    """The loss of the last training stage: the mean squared error of every image."""
    total = torch.zeros(())
    for name, layers in images.items():
        pooled = F.adaptive_avg_pool2d(channels(target), layers[0].shape[1:])
        last = train.last_weight
        if name == "lr" and not train.keep_lr_weight:
            last = train.layer_weight
        weights = [train.layer_weight] * (len(layers) - 1) + [last]
        for weight, image in zip(weights, layers, strict=True):
            total = total + weight * F.mse_loss(channels(image), pooled)
    return {"image": 1, "both": 2}[train.domain] * total


def state_of(parameters: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Turns our parameters, by their paths, into those of the network above."""
    state = {}
    for path, array in parameters.items():
        first, *rest = path.replace("Conv_", "convolutions/").split("/")
        stacked = first in _STACKS
        name = ".".join(rest).replace("kernel", "weight").replace("scale", "weight")
        for number, one in enumerate(array if stacked else [array]):
            weight = torch.from_numpy(one)
            if weight.ndim == 2:  # (inputs, outputs)
                weight = weight.T
            if weight.ndim == 4:  # (rows, columns, inputs, outputs)
                weight = weight.permute(3, 2, 0, 1)
            where = f"{first}.{number}." if stacked else f"{first}."
            state[where + name] = weight.contiguous()
    return state


def batch_of(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Turns the arrays of a `kst_jax.tokens.Batch` into tensors of its fields."""
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for name in ("kspace", "image"):
        batch[name] = torch.view_as_complex(batch[name])
    return batch | {"query": batch["query"].long()}


def train_step(
    network: KSpaceTransformer, batch: dict[str, Tensor], case: SimpleNamespace
) -> Callable[[], float]:
    """Makes a function that does one step and returns the loss before it."""
    train = SimpleNamespace(**case.train)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
        fused=True,
    )

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", enabled=case.dtype == "bfloat16"):
            images = network(batch)
        loss = loss_of(images, batch["image"], train)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def forward(
    network: KSpaceTransformer, batch: dict[str, Tensor], case: SimpleNamespace
) -> Callable[[], Tensor]:
    """Makes a function that reconstructs the batch."""

    @torch.inference_mode()
    def reconstruct() -> Tensor:
        with torch.autocast("cpu", enabled=case.dtype == "bfloat16"):
            return network(batch)["refined"][-1]

    return reconstruct


def differences(
    network: KSpaceTransformer,
    batch: dict[str, Tensor],
    case: SimpleNamespace,
    folder: Path,
) -> dict[str, float]:
    """Relative differences from our images, loss and gradient, by their norms."""
    images = network(batch)
    loss = loss_of(images, batch["image"], SimpleNamespace(**case.train))
    loss.backward()
    with np.load(folder / "images.npz") as file:
        wanted = {
            name: torch.view_as_complex(torch.from_numpy(file[name])) for name in file
        }
    found = {name: torch.stack(layers) for name, layers in images.items()}
    with np.load(folder / "gradient.npz") as file:
        gradient = state_of(dict(file))
    pairs = {name: (found[name], wanted[name]) for name in found}
    pairs["loss"] = loss, torch.tensor(case.loss)
    # As one vector: where a part is nearly zero, rounding is all of it.
    names, parameters = zip(*network.named_parameters(), strict=True)
    one, other = [p.grad for p in parameters], [gradient[name] for name in names]
    pairs["gradient"] = tuple(torch.cat([x.flatten() for x in g]) for g in (one, other))
    return {
        name: float((one.detach() - other).norm() / other.norm())
        for name, (one, other) in pairs.items()
    }


def main() -> None:
    """Command line."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    case = SimpleNamespace(**json.loads((folder / "network.json").read_text()))
    network = KSpaceTransformer(SimpleNamespace(**case.model))
    with np.load(folder / "parameters.npz") as file:
        network.load_state_dict(state_of(dict(file)))
    with np.load(folder / "batch.npz") as file:
        batch = batch_of(dict(file))
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if case.what == "check":
        about["differences"] = differences(network, batch, case, folder)
    call = (forward if case.what == "forward" else train_step)(network, batch, case)
    call()  # warms up
    turns.serve(call, **about)


if __name__ == "__main__":
    main()
