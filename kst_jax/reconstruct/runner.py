"""Reconstructs undersampled scans with a trained network, one file after another."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kst_jax import coils, parallel, tokens
from kst_jax.config import Config
from kst_jax.data import finding, labels, sensitivities, sources, transforms, volumes
from kst_jax.data.measurements import Measurement
from kst_jax.data.samples import Geometry
from kst_jax.data.volumes import Volume
from kst_jax.data_config import CoilsConfig, Selection
from kst_jax.errors import InputError
from kst_jax.models.contract import Reconstructor
from kst_jax.models.registry import build
from kst_jax.patches import Layout
from kst_jax.programs import files
from kst_jax.reconstruct import inputs, outputs
from kst_jax.reconstruct.inputs import Undersampling
from kst_jax.reconstruct.methods import Method, open_method
from kst_jax.tokens import Batch

RECORD = "reconstruct.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """How to reconstruct and write scans.

    Attributes:
      kind: format of the files, a key of `outputs.FORMATS`.
      phase: whether to write the phase too.
      checkpoint: "latest" or "best" of the run.
      batch_size: slices per call, over all devices.
      undersampling: the source of the masks, if not the scans themselves.
    """

    kind: str = "h5"
    phase: bool = False
    checkpoint: str = "latest"
    batch_size: int = 4
    undersampling: Undersampling = dataclasses.field(default_factory=Undersampling)


def reconstruct(
    run: str | Path, scans: str, out: str | Path, options: Options | None = None
) -> dict[str, Any]:
    """Reconstructs every slice of the scans and writes a file for each scan.

    The same call resumes an interrupted reconstruction.

    Args:
      run: folder of a run, of released weights or of a converted checkpoint; or "sense"
        for CG-SENSE, which needs no training.
      scans: paths as in `data.test`: .h5 and .npy of k-space, or for a try any scans.
      out: folder to write.
      options: how to reconstruct and write; None for the defaults.

    Returns:
      The contents of OUT/reconstruct.json.

    Raises:
      InputError: the run or the scans cannot be used, or the folder holds results of
        other options; nothing is written then.
    """
    options = options or Options()
    out = files.local_folder(out)
    method = open_method(run, options.checkpoint)
    selection = Selection(min_foreground=0.0)
    paths = [scan.path for scan in finding.find(scans)]
    names = dict(zip(paths, labels.file_names(paths), strict=True))
    opened = [volumes.open_scan(path, selection) for path in paths]
    record = _record(method, options)
    done = _finished(out, record)
    todo = [volume for volume in opened if names[volume.path] not in done]
    _look(todo, method, options.undersampling)
    files.make_folder(out)
    mesh = parallel.make_mesh(options.batch_size)
    everywhere = parallel.replicate(method.params, mesh)
    total = sum(len(volume.slices) for volume in todo)
    with tqdm(desc="Reconstructing", unit="slice", total=total) as bar:
        for volume in todo:
            started = time.monotonic()
            images, accelerations, geometry = _scan(
                volume, method.config, everywhere, mesh, options, bar
            )
            stem = labels.result_name(names[volume.path])
            name = stem + outputs.FORMATS[options.kind][0]
            outputs.write(out / name, images, options.kind, geometry, options.phase)
            done[names[volume.path]] = {
                "file": name,
                "slices": len(images),
                "size": list(images.shape[1:]),
                "acceleration": round(float(np.mean(accelerations)), 3),
                "seconds": round(time.monotonic() - started, 3),
            }
            with files.whole(out / RECORD) as partial:
                partial.write_text(json.dumps(record | {"scans": done}, indent=1))
    return record | {"scans": done}


def _record(method: Method, options: Options) -> dict[str, Any]:
    """Describes the origin of the images, apart from the scans."""
    mask = options.undersampling.mask
    return {
        "run": method.name,
        "step": method.step,
        "format": options.kind,
        "complex": options.phase,
        "acceleration": options.undersampling.acceleration,
        "mask": None if mask is None else hashlib.sha256(mask.tobytes()).hexdigest(),
    }


def _finished(out: Path, record: dict[str, Any]) -> dict[str, dict]:
    """Returns the scans that an earlier call has finished in the folder.

    Raises:
      InputError: the folder holds other files, or results of other options.
    """
    if not (out / RECORD).exists():
        if out.is_dir() and any(out.iterdir()):
            raise InputError(
                f"{out}: is not empty, but has no {RECORD}. Choose another folder."
            )
        return {}
    found = files.read_json(out / RECORD)
    for name, value in record.items():
        if not isinstance(found, dict) or found.get(name) != value:
            there = found.get(name) if isinstance(found, dict) else None
            raise InputError(
                f"{out}: holds reconstructions with another {name} ({there}, here "
                f"{value}). Choose another folder."
            )
    return {
        scan: about
        for scan, about in found["scans"].items()
        if (out / about["file"]).is_file()
    }


def _look(todo: list[Volume], method: Method, undersampling: Undersampling) -> None:
    """Refuses unusable scans; warns of scans unlike the training scans."""
    sources.warn_of(
        [f"{volume.path}: {doubt}" for volume in todo for doubt in volume.doubts]
    )
    warned: set[str] = set()
    config = method.config
    if config.data.normalise == "target" and todo:
        print(
            "warning: the network was trained on slices normalised by their targets "
            "(data.normalise); here the zero-filled image takes the target's place",
            file=sys.stderr,
        )
    for volume in todo:
        _require_coils(volume, method)
        with volumes.reading(volume.path):
            index = volume.slices[len(volume.slices) // 2]
            measurement = inputs.measure(volume, index, config, undersampling)
        _model_for(config, measurement)
        if method.step is None:  # no training to differ from
            continue
        simulated = not volume.measured
        found = inputs.differences(
            measurement, config, simulated, volume.pixel, method.fields
        )
        for kind, what in found.items():
            if kind not in warned:
                print(f"warning: {volume.path.name}: {what}", file=sys.stderr)
            warned.add(kind)


def _require_coils(volume: Volume, method: Method) -> None:
    """Raises InputError if the network does not take a scan's coils."""
    options, found = method.config.data.coils, volume.coils
    if method.step is None and method.config.model.takes_coils:
        return
    if found == 1 and options.separate:
        raise InputError(
            f"{volume.path}: holds k-space of one coil, but the network was trained "
            f"on {options.count}. Use a network for one coil."
        )
    if found > 1 and not options.separate:
        raise InputError(
            f"{volume.path}: holds k-space of {found} coils, but the network takes "
            "one. Reconstruct it with CG-SENSE (kst-reconstruct sense), or train a "
            "network for several coils (data.coils)."
        )
    if found < options.count and options.separate:
        raise InputError(
            f"{volume.path}: holds k-space of {found} coils, but the network was "
            f"trained on {options.count}. Reconstruct it with CG-SENSE "
            "(kst-reconstruct sense)."
        )


def _model_for(config: Config, measurement: Measurement) -> Reconstructor:
    """Builds the network for the matrix of a scan."""
    shape = measurement.mask.shape
    try:
        model = config.model.resized(config.data.size, shape)
        model.require_size(shape)
    except InputError as error:
        raise InputError(
            f"the network cannot reconstruct a matrix of {shape[0]} x {shape[1]}: "
            f"{error}. Use another network, such as the K-Space Transformer."
        ) from None
    return build(model)


def _scan(
    volume: Volume,
    config: Config,
    params: dict,
    mesh: Mesh,
    options: Options,
    bar: tqdm,
) -> tuple[np.ndarray, list[float], Geometry | None]:
    """Returns a scan's complex images (S, H, W), its accelerations and geometry."""
    with volumes.reading(volume.path):
        slices = [
            inputs.measure(volume, index, config, options.undersampling)
            for index in volume.slices
        ]
    shapes = {one.mask.shape for one in slices}
    if len(shapes) > 1:
        raise InputError(f"{volume.path}: its slices differ in size: {sorted(shapes)}.")
    geometry = slices[0].geometry
    if config.data.coils.separate:
        slices = _compressed(slices, config.data.coils.count)
    maps = _maps(volume, slices, config.data.coils)
    network = _compiled(_model_for(config, slices[0]), mesh)
    images = []
    for batch, mean, std, count in _batches(volume, slices, maps, config, options):
        shards = parallel.shard((batch, mean, std), mesh)
        found = np.asarray(parallel.fetch(network(params, *shards)))[:count]
        images.append(found[..., 0] + 1j * found[..., 1])
        bar.update(count)
    whole = np.concatenate(images)
    matrix = whole.shape[1:] if geometry is None else geometry.matrix
    size = [min(n, m) for n, m in zip(whole.shape[1:], matrix, strict=True)]
    cropped = np.stack([transforms.centre_crop(x, tuple(size)) for x in whole])
    return cropped, [one.acceleration for one in slices], geometry


def _compressed(slices: list[Measurement], count: int) -> list[Measurement]:
    """Compresses the coils of a scan to virtual ones."""
    calibration = np.stack([one.calibration for one in slices])
    compression = coils.compression(calibration, count)
    return [
        dataclasses.replace(
            one,
            kspace=np.tensordot(compression, one.kspace, 1),
            calibration=np.tensordot(compression, one.calibration, 1),
        )
        for one in slices
    ]


def _maps(
    volume: Volume, slices: list[Measurement], options: CoilsConfig
) -> np.ndarray | None:
    """Estimates the coils' maps (S, C, H, W, 2); None for one coil."""
    if volume.coils == 1:
        return None
    maps = []
    for index, one in zip(volume.slices, slices, strict=True):
        try:  # one by one: repetitions may be sampled differently
            found = sensitivities.maps_of(one.calibration, options)
        except InputError as error:
            raise InputError(f"{volume.path}: slice {index}: {error}") from None
        maps.append(np.stack([found.real, found.imag], axis=-1))
    return np.stack(maps)


def _batches(
    volume: Volume,
    slices: list[Measurement],
    maps: np.ndarray | None,
    config: Config,
    options: Options,
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray, int]]:
    """Yields batches of equal shape; pads the last one with its last slice."""
    patch = config.model.patch
    layout = Layout.of(*(one.mask for one in slices), patch=patch)
    for first in range(0, len(slices), options.batch_size):
        part = slices[first : first + options.batch_size]
        padded = part + [part[-1]] * (options.batch_size - len(part))
        prepared = [
            inputs.tokenise(one, config, layout, f"{volume.path}: slice {first + n}")
            for n, one in enumerate(padded)
        ]
        mean, std = (
            np.array([getattr(n, name) for _, n in prepared], np.float32)
            for name in ("mean", "std")
        )
        fields = [fields for fields, _ in prepared]
        if maps is not None:
            for n, one in enumerate(fields):
                one["maps"] = maps[min(first + n, len(maps) - 1)]
        yield tokens.batch_of(fields, patch=patch), mean, std, len(part)


def _compiled(model: Reconstructor, mesh: Mesh) -> Callable:
    """Compiles a function to images (B, H, W, 2) in the units of the k-space."""
    model = model.clone(query_axis=parallel.QUERY)

    def network(
        params: dict, batch: Batch, mean: jax.Array, std: jax.Array
    ) -> jax.Array:
        image = model.reconstruct(params, batch).image
        return transforms.denormalise(image, mean, std)

    return parallel.map_over_devices(
        network,
        mesh,
        in_specs=(parallel.REPLICATED, *[parallel.SHARDED] * 3),
        out_specs=parallel.SHARDED,
    )
