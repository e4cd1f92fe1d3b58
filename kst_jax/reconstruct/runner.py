"""Reconstructs undersampled scans with a trained network, one file after another."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kst_jax import coils, parallel, tokens
from kst_jax.config import Config
from kst_jax.data import finding, labels, sensitivities, transforms, volumes
from kst_jax.data.off_grid import TrajectoryOptions
from kst_jax.data.samples import Geometry
from kst_jax.data.volumes import AnyVolume
from kst_jax.data_config import CoilsConfig, Selection
from kst_jax.errors import InputError
from kst_jax.evaluation.uncertainty import LEVEL
from kst_jax.models import ensemble
from kst_jax.models.contract import Reconstructor
from kst_jax.programs import files
from kst_jax.reconstruct import inputs, outputs, suitability
from kst_jax.reconstruct.inputs import AnyMeasurement, Undersampling
from kst_jax.reconstruct.methods import Method, open_method
from kst_jax.reconstruct.outputs import Images
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
    method = open_method(run, options.checkpoint, options.uncertainty)
    selection = Selection(min_foreground=0.0)
    paths = _scans(scans, options.trajectory)
    names = dict(zip(paths, labels.file_names(paths), strict=True))
    opened = [volumes.open_scan(path, selection, options.trajectory) for path in paths]
    record = _record(method, options)
    done = _finished(out, record)
    todo = [volume for volume in opened if names[volume.path] not in done]
    suitability.look(todo, method, options.undersampling)
    files.make_folder(out)
    mesh = parallel.make_mesh(options.batch_size)
    everywhere = parallel.replicate(method.members, mesh)
    total = sum(len(volume.slices) for volume in todo)
    with tqdm(desc="Reconstructing", unit="slice", total=total) as bar:
        for volume in todo:
            started = time.monotonic()
            images, accelerations = _scan(
                volume, method, everywhere, mesh, options, bar
            )
            stem = labels.result_name(names[volume.path])
            name = stem + outputs.FORMATS[options.kind][0]
            outputs.write(out / name, images, options.kind, options.phase)
            if method.calibration:
                outputs.draw_deviation(out / f"{stem}_deviation.png", images)
            count, *size = images.image.shape
            done[names[volume.path]] = {
                "file": name,
                "slices": count,
                "size": size,
                "acceleration": round(float(np.mean(accelerations)), 3),
                "seconds": round(time.monotonic() - started, 3),
            }
            with files.whole(out / RECORD) as partial:
                partial.write_text(json.dumps(record | {"scans": done}, indent=1))
    return record | {"scans": done}


def _scans(scans: str, options: TrajectoryOptions) -> list[Path]:
    """Returns the files of the scans; a trajectory beside them is none."""
    found = [scan.path for scan in finding.find(scans)]
    if options.path is None:
        return found
    own = finding.own_path(options.path)
    paths = [path for path in found if finding.own_path(path) != own]
    if not paths:
        raise InputError(
            f"{scans}: is the trajectory alone; name the file of k-space too"
        )
    return paths


def _record(method: Method, options: Options) -> dict[str, Any]:
    """Describes the origin of the images, apart from the scans."""
    mask, trajectory = options.undersampling.mask, options.trajectory
    calibration = method.calibration
    return {
        "run": method.name,
        "step": method.step,
        "format": options.kind,
        "complex": options.phase,
        "acceleration": options.undersampling.acceleration,
        "mask": None if mask is None else hashlib.sha256(mask.tobytes()).hexdigest(),
        "trajectory": trajectory.path and files.sha256_of(trajectory.path),
        "trajectory_units": trajectory.units or None,
        "uncertainty": calibration
        and {
            "interval": LEVEL,
            "scale": calibration.scale,
            "people": list(calibration.people),
            "networks": sorted(calibration.runs),
        },
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


def _scan(
    volume: AnyVolume,
    method: Method,
    members: tuple[dict, ...],
    mesh: Mesh,
    options: Options,
    bar: tqdm,
) -> tuple[Images, list[float]]:
    """Returns a scan's images and its accelerations."""
    config = method.config
    with volumes.reading(volume.path):
        slices = [
            inputs.measure(volume, index, config, options.undersampling)
            for index in volume.slices
        ]
    shapes = {one.kspace.shape for one in slices}
    if len(shapes) > 1:
        raise InputError(f"{volume.path}: its slices differ in size: {sorted(shapes)}.")
    geometry = slices[0].geometry
    if config.data.coils.separate:
        slices = _compressed(slices, config.data.coils.count)
    maps = _maps(volume, slices, config.data.coils)
    calibration = method.calibration
    scale = calibration.scale if calibration else None
    network = _compiled(suitability.model_for(config, slices[0]), mesh, scale)
    found = []
    for batch, mean, std, count in _batches(volume, slices, maps, config, options):
        shards = parallel.shard((batch, mean, std), mesh)
        images = parallel.fetch(network(members, *shards))
        found.append({name: np.asarray(x)[:count] for name, x in images.items()})
        bar.update(count)
    whole = {name: np.concatenate([x[name] for x in found]) for name in found[0]}
    if geometry:
        whole = {name: _matrix(x, geometry) for name, x in whole.items()}
    images = Images(
        whole["image"], geometry, whole.get("deviation"), whole.get("members")
    )
    return images, [one.acceleration for one in slices]


def _matrix(images: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Crops images (..., H, W) to the matrix in the file's header."""
    rows, columns = (
        min(n, m) for n, m in zip(images.shape[-2:], geometry.matrix, strict=True)
    )
    return transforms.centre_crop(images, (rows, columns))


def _compressed(slices: list[AnyMeasurement], count: int) -> list[AnyMeasurement]:
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
    volume: AnyVolume, slices: list[AnyMeasurement], options: CoilsConfig
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
    volume: AnyVolume,
    slices: list[AnyMeasurement],
    maps: np.ndarray | None,
    config: Config,
    options: Options,
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray, int]]:
    """Yields batches of equal shape; pads the last one with its last slice."""
    patch = config.model.patch
    layout = inputs.layout_of(slices, patch)
    for first in range(0, len(slices), options.batch_size):
        part = slices[first : first + options.batch_size]
        padded = part + [part[-1]] * (options.batch_size - len(part))
        prepared = []
        for n, one in enumerate(padded):
            own = None if maps is None else maps[min(first + n, len(maps) - 1)]
            where = f"{volume.path}: slice {first + n}"
            prepared.append(inputs.tokenise(one, own, config, layout, where))
        mean, std = (
            np.array([getattr(n, name) for _, n in prepared], np.float32)
            for name in ("mean", "std")
        )
        fields = [fields for fields, _ in prepared]
        yield tokens.batch_of(fields, patch=patch), mean, std, len(part)


def _compiled(model: Reconstructor, mesh: Mesh, scale: float | None) -> Callable:
    """Compiles a function to images (B, ..., H, W) in the units of the k-space.

    They are the complex `image`; and, if there is a scale for it, the `deviation` of
    its magnitude, and with an ensemble the `members`, (B, M, H, W).
    """
    model = model.clone(query_axis=parallel.QUERY)

    def network(
        members: tuple[dict, ...], batch: Batch, mean: jax.Array, std: jax.Array
    ) -> dict[str, jax.Array]:
        output = ensemble.reconstruct(model, members, batch)
        found = {"image": _complex(output.image, mean, std)}
        if scale is not None and output.deviation is not None:
            found["deviation"] = scale * output.deviation * std[:, None, None]
            if output.members is not None:
                each = [_complex(one, mean, std) for one in output.members]
                found["members"] = jnp.stack(each, axis=1)
        return found

    return parallel.map_over_devices(
        network,
        mesh,
        in_specs=(parallel.REPLICATED, *[parallel.SHARDED] * 3),
        out_specs=parallel.SHARDED,
    )


def _complex(image: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Returns images (B, H, W) in the units of the k-space."""
    shown = transforms.denormalise(image, mean, std)
    return jax.lax.complex(shown[..., 0], shown[..., 1])
