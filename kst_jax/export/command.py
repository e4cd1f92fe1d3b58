"""Exports a trained network as one file that needs nothing but JAX.

    kst-export runs/demo exported

takes the latest checkpoint of the run in runs/demo and writes into a new folder

    exported/network.stablehlo   program and weights, for CPU, CUDA and TPU and for any
                                 batch size, with the run's image size and undersampling
    exported/network.json        its checksum, the version of JAX and the date
    exported/reconstruct.py      calls it, without kst_jax:
                                 python exported/reconstruct.py INPUT.npz IMAGE.npy
"""

import dataclasses
import datetime
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

# `import jax` does not import the module jax.export.
from jax import export as jax_export

from kst_jax import patches
from kst_jax.config import Config
from kst_jax.data import opening
from kst_jax.errors import InputError
from kst_jax.models.config import KSTConfig
from kst_jax.models.contract import Reconstructor
from kst_jax.models.registry import build
from kst_jax.patches import Layout
from kst_jax.programs import cli, files
from kst_jax.programs.arguments import Parser
from kst_jax.runs import checkpoints
from kst_jax.stages import require_trained
from kst_jax.tokens import Batch

PLATFORMS = ("cpu", "cuda", "tpu")
_STANDALONE = Path(__file__).with_name("standalone.py")


def reconstructor(
    model: Reconstructor, params: dict, layout: Layout
) -> Callable[..., jax.Array]:
    """Makes a function of arrays: k-space (B, H, W, 2) and mask (B, H, W) to images.

    For several coils, k-space is (B, C, H, W, 2), and the function also takes their
    sensitivity maps, (B, C, H, W, 2).

    Args:
      model: the network.
      params: its parameters, which become constants.
      layout: of the tokens, for the masks that the function may get.

    Returns:
      The function. Its images are (B, H, W, 2), in the scale of the k-space; an image
      is NaN if its mask does not fit the layout.
    """

    def reconstruct(
        kspace: jax.Array, mask: jax.Array, maps: jax.Array | None = None
    ) -> jax.Array:
        batch = jax.vmap(lambda k, m: _tokenise(k, m, layout))(kspace, mask)
        batch = dataclasses.replace(batch, maps=maps)
        image = model.reconstruct(params, batch).image
        fits = jax.vmap(lambda m: _fits(m, layout))(mask)
        return jnp.where(fits[:, None, None, None], image, jnp.nan)

    return reconstruct


def _tokenise(kspace: jax.Array, mask: jax.Array, layout: Layout) -> Batch:
    """Does the work of `tokens.tokenise`, but traceable; always sets `valid`."""
    patch, most = layout.patch, layout.tokens(mask.shape)
    kspace, coils = jnp.where(mask[..., None], kspace, 0), kspace.ndim == 4
    points = jnp.concatenate(kspace, axis=-1) if coils else kspace
    seen, asked = (patches.with_any(m, patch) for m in (mask, ~mask))
    (sampled,) = jnp.nonzero(seen, size=most, fill_value=0)
    if coils:
        query = jnp.arange(len(seen))
    else:
        size = layout.queries(mask.shape)
        (query,) = jnp.nonzero(asked, size=size, fill_value=len(seen) - 1)
    return Batch(
        value=patches.split(points, patch)[sampled],
        position=jnp.asarray(patches.coordinates(mask.shape, patch))[sampled],
        valid=jnp.arange(most) < seen.sum(),
        query=query.astype(jnp.int32),
        kspace=kspace,
        mask=mask,
        seen=None if patch == (1, 1) else patches.within(mask, patch)[sampled],
        patch=patch,
    )


def _fits(mask: jax.Array, layout: Layout) -> jax.Array:
    """Whether the layout serves a mask (H, W)."""
    tokens, queries = (patches.with_any(m, layout.patch).sum() for m in (mask, ~mask))
    shape, sampled = mask.shape, mask.sum()
    counted = (layout.least <= sampled) & (sampled <= layout.most)
    held = (tokens <= layout.tokens(shape)) & (queries <= layout.queries(shape))
    return counted & held


def export(
    config: Config, params: dict, platforms: tuple[str, ...] = PLATFORMS
) -> jax_export.Exported:
    """Exports the network of a run for several platforms and any batch size.

    Args:
      config: the run's; gives image size, undersampling and network.
      params: the network's parameters.
      platforms: "cpu", "cuda", "rocm", "tpu".

    Raises:
      InputError: the network was trained off the grid.
    """
    if config.mask.off_grid:
        raise InputError(
            f"the network was trained off the grid (mask.kind={config.mask.kind!r}), "
            "but an exported network takes k-space on the grid and a mask. Reconstruct "
            "with kst-reconstruct instead; export networks trained on the grid."
        )
    model = config.model
    if isinstance(model, KSTConfig):
        # The portable form; "auto" would choose by this machine.
        model = dataclasses.replace(model, attention="blocked")
    layout = opening.open_sampler(config).layout(model.patch)
    function = reconstructor(build(model), params, layout)
    (b,) = jax_export.symbolic_shape("b")
    size, coils = config.data.size, config.data.coils
    separate = (coils.count,) if coils.separate else ()
    kspace = jax.ShapeDtypeStruct((b, *separate, *size, 2), np.float32)
    mask = jax.ShapeDtypeStruct((b, *size), np.bool_)
    maps = [kspace] if coils.separate else []
    return jax_export.export(jax.jit(function), platforms=platforms)(
        kspace, mask, *maps
    )


def write(exported: jax_export.Exported, out: str | Path) -> None:
    """Writes the program and the example that loads it, both or none.

    Raises:
      InputError: `out` already exists, or cannot be written.
    """
    out = _require_new(out)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as temporary:
        folder = Path(temporary) / "out"
        folder.mkdir()
        program = folder / "network.stablehlo"
        program.write_bytes(exported.serialize())
        about = {
            "sha256": files.sha256_of(program),
            "jax": jax.__version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        (folder / "network.json").write_text(json.dumps(about, indent=2) + "\n")
        (folder / "reconstruct.py").write_text(_STANDALONE.read_text())
        os.replace(folder, out)


def _require_new(out: str | Path) -> Path:
    """Returns the path of a new folder; raises InputError if it cannot be made."""
    out = files.local_folder(out)
    if out.exists():
        raise InputError(f"{out}: already exists; choose a new folder")
    files.make_folder(out.parent)
    return out


def _main() -> None:
    """Command line: exports a checkpoint of a run."""
    parser = Parser("kst-export", __doc__)
    parser.add_argument("workdir", help="folder of a run of kst-train")
    parser.add_argument("out", help="new folder to write")
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=(*PLATFORMS, "rocm"),
        default=PLATFORMS,
        metavar="PLATFORM",
        help="platforms to export for: cpu, cuda, tpu, rocm (cpu cuda tpu)",
    )
    parser.add_argument(
        "--checkpoint",
        choices=("latest", "best"),
        default="latest",
        help="which checkpoint (latest); best is the best in validation",
    )
    args = parser.parse_args()
    out = _require_new(args.out)
    params, config, step = checkpoints.read_parameters(args.workdir, args.checkpoint)
    model = build(config.model)
    require_trained(config.train, step, model.stages, args.workdir)
    write(export(config, params, tuple(args.platforms)), out)
    print(f"wrote {args.out}: the network of {args.workdir} at step {step}")
    print(f"  python {args.out}/reconstruct.py INPUT.npz IMAGE.npy")


def main() -> None:
    """Command line."""
    cli.run(_main)
