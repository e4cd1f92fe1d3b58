r"""Converts the authors' PyTorch checkpoints into checkpoints of this library.

    kst-convert checkpoint.pth runs/authors

writes runs/authors/checkpoints/0 and runs/authors/config.json, which can be evaluated
but not trained further:

    kst-eval --config=saved:runs/authors --workdir=runs/authors \
        --config.data.test=/data/scans --config.mask.kind=uniform_1d

PyTorch is not needed. The weights give the sizes, but not the number of heads and the
low-resolution grid; these are flags, by default the paper's. Nor do they give the
undersampling of the training; set config.mask, by default Gaussian 2D 5x.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from kst_jax import tokens
from kst_jax.config import Config
from kst_jax.convert import torch_file
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.programs import cli, files
from kst_jax.programs.arguments import Parser
from kst_jax.runs import agreement, checkpoints

# Maps the authors' names to ours. A `layer` is an index into a stack of layers, which
# here is one array with a leading axis.
_NAMES = {
    r"encoder_embed_layer\.(?P<part>0|2)": "embed_token/{part}",
    r"decoderHR\.HR_embed_layer\.(?P<part>0|2)": "embed_query/{part}",
    r"encoder\.layers\.(?P<layer>\d+)\.self_attn\.(?P<part>\w+)": (
        "encoder/self_attention/{part}"
    ),
    r"encoder\.layers\.(?P<layer>\d+)\.linear(?P<part>1|2)": "encoder/mlp/mlp/{part}",
    r"encoder\.layers\.(?P<layer>\d+)\.norm": "encoder/mlp/norm",
    r"decoderLR\.layers\.(?P<layer>\d+)\.self_attn\.(?P<part>\w+)": (
        "lr_decoder/self_attention/{part}"
    ),
    r"decoder(?P<grid>LR|HR)\.layers\.(?P<layer>\d+)\.multihead_attn\.(?P<part>\w+)": (
        "{grid}_decoder/cross_attention/{part}"
    ),
    r"decoder(?P<grid>LR|HR)\.layers\.(?P<layer>\d+)\.ffn1\.(?P<part>0|3)": (
        "{grid}_decoder/mlp/mlp/{part}"
    ),
    r"decoder(?P<grid>LR|HR)\.layers\.(?P<layer>\d+)\.norm1": "{grid}_decoder/mlp/norm",
    r"decoder(?P<grid>LR|HR)\.\w\w_norm_layers\.(?P<layer>\d+)": (
        "{grid}_decoder/head/norm"
    ),
    r"decoder(?P<grid>LR|HR)\.\w\w_predict_layers\.(?P<layer>\d+)\.(?P<part>0|2)": (
        "{grid}_decoder/head/mlp/{part}"
    ),
    r"decoderHR\.ConvBlocks\.(?P<layer>\d+)\.convs\.(?P<conv>\d+)": (
        "hr_decoder/refinement/Conv_{conv}"
    ),
}
_PARTS = {
    "w_qs": "query",
    "w_ks": "key",
    "w_vs": "value",
    "fc": "out",
    "layer_norm": "norm",
    **dict.fromkeys(("0", "1"), "hidden"),
    **dict.fromkeys(("2", "3"), "output"),
}
_CONSTANTS = ("pe_layer.div_term",)
# Parts of names that come from torch's wrappers of a network or of its parts.
_WRAPPERS = ("module", "_orig_mod")


def parameters(state: Mapping[str, np.ndarray]) -> dict:
    """Converts the authors' `model_state_dict` to parameters of KSpaceTransformer.

    Raises:
      InputError: the authors' network has no such name, a name occurs twice, or layers
        are missing.
    """
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for key, weight in state.items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name not in _CONSTANTS:
            path, layer, leaf = _translate(name, weight)
            if layer in stacks.setdefault(path, {}):
                raise InputError(
                    f"the weight {name!r} occurs twice; keep one of the two"
                )
            stacks[path][layer] = leaf
    tree: dict = {}
    for path, layers in stacks.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _stack(path, layers)
    return tree


def _translate(name: str, weight: np.ndarray) -> tuple[str, int, np.ndarray]:
    """Returns our path, the index in a stack (-1: no stack), and our layout."""
    module, _, kind = name.rpartition(".")
    found = [
        (path, match.groupdict())
        for pattern, path in _NAMES.items()
        if (match := re.fullmatch(pattern, module))
    ]
    if not found:
        raise InputError(
            f"unknown weight {name!r}: not a checkpoint of the authors' K-Space "
            "Transformer"
        )
    ((path, groups),) = found
    path = path.format(
        part=_PARTS.get(groups.get("part") or "", ""),
        grid=groups.get("grid", "").lower(),
        # Odd indices are the activations between the convolutions.
        conv=int(groups.get("conv", 0)) // 2,
    )
    leaf = kind
    if kind == "weight":
        leaf = "kernel" if weight.ndim > 1 else "scale"
    return f"{path}/{leaf}", int(groups.get("layer", -1)), _transpose(weight)


def _transpose(weight: np.ndarray) -> np.ndarray:
    """Transposes (out, in, ...) to flax's (..., in, out)."""
    return np.moveaxis(weight, (0, 1), (-1, -2)) if weight.ndim > 1 else weight


def _stack(path: str, layers: dict[int, np.ndarray]) -> np.ndarray:
    if -1 in layers:
        return layers[-1]
    if sorted(layers) != list(range(len(layers))):
        raise InputError(f"layers {sorted(layers)} of {path!r} leave a gap")
    if len({layer.shape for layer in layers.values()}) > 1:
        raise InputError(f"layers of {path!r} differ in shape")
    return np.stack([layers[i] for i in range(len(layers))])


def model_config(params: dict, heads: int, lr_size: tuple[int, int]) -> KSTConfig:
    """Reads the network's sizes from its parameters.

    Raises:
      InputError: a part of the network is missing.
    """
    try:
        width = params["embed_token"]["output"]["kernel"].shape[-1]
        mlp = params["encoder"]["mlp"]["mlp"]["hidden"]["kernel"]
        refinement = params["hr_decoder"]["refinement"]
        lr_layers = len(params["lr_decoder"]["mlp"]["norm"]["scale"])
        hr_layers = len(params["hr_decoder"]["mlp"]["norm"]["scale"])
    except KeyError as missing:
        raise InputError(f"the checkpoint has no {missing} weights") from None
    kernel = refinement["Conv_0"]["kernel"]
    return KSTConfig(
        width=width,
        heads=heads,
        mlp=mlp.shape[-1],
        encoder_layers=len(mlp),
        lr_layers=lr_layers,
        hr_layers=hr_layers,
        lr_size=lr_size,
        refinement_features=kernel.shape[-1],
        refinement_layers=len(refinement) - 1,
        refinement_kernel=kernel.shape[1],
    )


def load(
    path: str, heads: int = 4, lr_size: tuple[int, int] = (64, 64)
) -> tuple[dict, KSTConfig]:
    """Reads the authors' checkpoint.

    Args:
      path: a `.pth` file with a `model_state_dict`.
      heads: number of attention heads, which the weights do not give.
      lr_size: the low-resolution grid, which the weights do not give.

    Returns:
      Parameters of KSpaceTransformer and its config.

    Raises:
      InputError: not a readable checkpoint of the authors' network, or its training
        diverged.
    """
    checkpoint = torch_file.load(path)
    state = checkpoint.get("model_state_dict") if isinstance(checkpoint, dict) else None
    whole = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(weight, np.ndarray)
        for name, weight in state.items()
    )
    if not state or not whole:
        raise InputError(
            f"{path}: no 'model_state_dict'; give a checkpoint that the authors' "
            "training wrote"
        )
    try:
        params = parameters(state)
        config = model_config(params, heads, lr_size)
        _require_whole(params, config)
        agreement.require_finite(params)
        return params, config
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _require_whole(params: dict, config: KSTConfig) -> None:
    size = 2 * config.lr_size[0], 2 * config.lr_size[1]
    example = tokens.tokenise(np.zeros((*size, 2), np.float32), np.eye(*size) > 0)
    model = KSpaceTransformer(config)
    agreement.require_fit(params, model, tokens.batch_of([example]), "the file")


def _main() -> None:
    """Command line: converts one checkpoint."""
    parser = Parser("kst-convert", __doc__)
    parser.add_argument("checkpoint", help="the authors' .pth file")
    parser.add_argument("out", help="folder to write, which must hold no run")
    parser.add_argument("--heads", type=int, default=4, help="attention heads (4)")
    parser.add_argument(
        "--lr_size",
        type=int,
        nargs=2,
        default=(64, 64),
        metavar=("ROWS", "COLUMNS"),
        help="low-resolution grid (64 64); images have twice its size",
    )
    args = parser.parse_args()
    out = files.local_folder(args.out)
    params, model = load(args.checkpoint, args.heads, tuple(args.lr_size))
    size = 2 * model.lr_size[0], 2 * model.lr_size[1]
    config = dataclasses.replace(
        Config(), model=model, data=DataConfig(size=size, normalise="target")
    )
    checkpoints.write_parameters(out, params, config)
    print(f"wrote {args.out}; evaluate it with")
    print(
        f"  kst-eval --config=saved:{args.out} --workdir={args.out} "
        "--config.data.test=YOUR_SCANS"
    )
    print(
        "and set --config.mask.kind and --config.mask.acceleration as in training, if "
        f"not {config.mask.kind} {config.mask.acceleration:g}x"
    )


def main() -> None:
    """Command line."""
    cli.run(_main)
