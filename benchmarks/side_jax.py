"""Our side of `benchmarks.pytorch_network`.

    python -m benchmarks.side_jax NETWORK WHAT DTYPE FOLDER

WHAT is forward, "train step" or check. FOLDER receives what the other side needs:
config, parameters and batch, and, to check, our images and gradient.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import turns
from kst_jax import parallel
from kst_jax.benchmark import measuring
from kst_jax.config import Config
from kst_jax.config_dict import from_dict
from kst_jax.configs.default import get_config
from kst_jax.models.contract import Reconstructor
from kst_jax.models.registry import build
from kst_jax.tokens import Batch
from kst_jax.training import loop, losses, optimizers

_FEW = {"encoder_layers": 2, "lr_layers": 2, "hr_layers": 2, "refinement_features": 8}
# Image size, and what differs in the model from the default config's.
NETWORKS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "tiny": ((16, 16), {"width": 16, "mlp": 32, "lr_size": (8, 8), **_FEW}),
    "narrow": ((64, 64), {"width": 64, "mlp": 256, "lr_size": (32, 32)}),
    "paper": ((128, 128), {}),
}


def config_of(network: str, dtype: str) -> Config:
    """The default config, Gaussian 2D at 5x, with another network."""
    config = get_config()
    size, model = NETWORKS[network]
    config.data.size = size
    config.model.update(model, dtype=dtype)
    return from_dict(config)


def arrays(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of parameters by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(x) for path, x in leaves}


def write(
    folder: Path, what: str, config: Config, params: dict, batch: Batch, **more: Any
) -> None:
    """Writes what the other side needs."""
    fields = {"value", "position", "query", "kspace", "mask", "image"}
    np.savez(folder / "parameters.npz", **arrays(params))
    np.savez(folder / "batch.npz", **{name: getattr(batch, name) for name in fields})
    sections = {
        name: dataclasses.asdict(getattr(config, name)) for name in ("model", "train")
    }
    case = {"what": what, "dtype": config.model.dtype, **sections, **more}
    (folder / "network.json").write_text(json.dumps(case))


def expected(
    model: Reconstructor, params: dict, batch: Batch, config: Config, folder: Path
) -> float:
    """Writes our images and gradient for the other side, and returns the loss."""

    def loss_of(params: dict) -> tuple[jax.Array, dict]:
        output = model.reconstruct(params, batch)
        return losses.loss(output, batch, config.train, "RM"), output.supervised

    step = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, images), gradient = step(params)
    np.savez(folder / "images.npz", **images)
    np.savez(folder / "gradient.npz", **arrays(gradient))
    return float(loss)


def program(
    what: str, model: Reconstructor, params: dict, batch: Batch, config: Config
) -> Callable[[], Any]:
    """Compiles a forward pass or a train step, as `kst-benchmark` does."""
    mesh = parallel.make_mesh(1)
    params, batch = parallel.replicate(params, mesh), parallel.shard(batch, mesh)
    if what == "forward":
        reconstruct = measuring.make_forward(model, mesh)
        return lambda: jax.block_until_ready(reconstruct(params, batch))
    optimizer = optimizers.make_optimizer(config.train, model)
    step = loop.make_step(model, optimizer, config.train, "RM", mesh)
    state = loop.init_state(model, optimizer, batch, config.train)
    state = parallel.replicate(state, mesh)

    def call() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, batch))[0]  # which reuses its memory

    return call


def main() -> None:
    """Command line."""
    jax.config.update("jax_platforms", "cpu")
    network, what, dtype, place = sys.argv[1:]
    config, folder = config_of(network, dtype), Path(place)
    model, batch = build(config.model), measuring.example(config, 1)
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    if what == "check":
        loss = expected(model, params, batch, config, folder)
        write(folder, what, config, params, batch, loss=loss)
        turns.serve(lambda: None)
        return
    write(folder, what, config, params, batch)
    call = program(what, model, params, batch, config)
    call()  # compiles
    turns.serve(call)


if __name__ == "__main__":
    main()
