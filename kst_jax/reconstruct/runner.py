"""Reconstructs undersampled scans with a trained network, one file after another."""

import dataclasses
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
from kst_jax.data.samples import Geometry
from kst_jax.data.volumes import AnyVolume
from kst_jax.data_config import CoilsConfig, Selection
from kst_jax.errors import InputError
from kst_jax.models import ensemble
from kst_jax.models.contract import Reconstructor
from kst_jax.programs import files
from kst_jax.reconstruct import inputs, outputs, record, suitability
from kst_jax.reconstruct.inputs import AnyMeasurement
from kst_jax.reconstruct.methods import Method, open_method
from kst_jax.reconstruct.options import Options
from kst_jax.reconstruct.outputs import Images
from kst_jax.tokens import Batch


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
    paths = _scans(scans, out, options)
    names = dict(zip(paths, labels.file_names(paths), strict=True))
    opened = {
        names[path]: volumes.open_scan(path, selection, options.trajectory)
        for path in paths
    }
    results = {name: (path, _result(name, options)) for path, name in names.items()}
    origin = record.origin_of(method, options)
    done = record.finished(out, origin, results)
    todo = {name: one for name, one in opened.items() if name not in done}
    suitability.look(list(todo.values()), method, options.undersampling)
    files.make_folder(out)
    with files.alone_in(out):
        # Another call may have written here since.
        done = record.finished(out, origin, results)
        todo = {name: one for name, one in opened.items() if name not in done}
        _write_images(todo, method, options, out, origin, done)
    return origin | {"scans": done}


def _write_images(
    todo: dict[str, AnyVolume],
    method: Method,
    options: Options,
    out: Path,
    origin: dict[str, Any],
    done: dict[str, dict],
) -> None:
    """Reconstructs scans, by name, and adds each to the record of the finished ones."""
    mesh = parallel.make_mesh(options.batch_size)
    members = parallel.replicate(method.members, mesh)
    total = sum(len(volume.slices) for volume in todo.values())
    with tqdm(desc="Reconstructing", unit="slice", total=total) as bar:
        for name, volume in todo.items():
            started, fingerprint = time.monotonic(), volumes.fingerprint(volume.path)
            images, accelerations = _scan(volume, method, members, mesh, options, bar)
            result = _result(name, options)
            outputs.write(out / result, images, options.kind, options.phase)
            if method.calibration:
                drawn = out / f"{labels.result_name(name)}_deviation.png"
                outputs.draw_deviation(drawn, images)
            count, *size = images.image.shape
            done[name] = {
                "file": result,
                "scan": fingerprint,
                "slices": count,
                "size": size,
                "acceleration": round(float(np.mean(accelerations)), 3),
                "seconds": round(time.monotonic() - started, 3),
            }
            record.write(out, origin, done)


def _result(name: str, options: Options) -> str:
    """Returns the name of the file with a scan's images."""
    return labels.result_name(name) + outputs.FORMATS[options.kind][0]


def _scans(scans: str, out: Path, options: Options) -> list[Path]:
    """Returns the files of the scans, without a trajectory beside them and results."""
    found = [scan.path for scan in finding.find(scans)]
    trajectory, results = options.trajectory.path, out.resolve()
    if trajectory is not None:
        own = finding.own_path(trajectory)
        found = [path for path in found if finding.own_path(path) != own]
        if not found:
            raise InputError(
                f"{scans}: is the trajectory alone; name the file of k-space too"
            )
    found = [path for path in found if results not in path.resolve().parents]
    if not found:
        raise InputError(f"{scans}: is in {out}, the folder of results; choose another")
    return found


def _scan(
    volume: AnyVolume,
    method: Method,
    members: tuple[dict, ...],
    mesh: Mesh,
    options: Options,
    bar: tqdm,
) -> tuple[Images, list[float]]:
    """Returns a scan's images and its accelerations."""
    config, calibration = method.config, method.calibration
    slices = _measured(volume, config, options)
    first = next(iter(slices.values()))
    maps = _maps(volume, slices, config.data.coils)
    scale = calibration.scale if calibration else None
    network = _compiled(suitability.model_for(config, first), mesh, scale)
    found = []
    for batch, mean, std, count in _batches(volume, slices, maps, config, options):
        shards = parallel.shard((batch, mean, std), mesh)
        images = parallel.fetch(network(members, *shards))
        found.append({name: np.asarray(x)[:count] for name, x in images.items()})
        bar.update(count)
    sampled = np.isin(volume.slices, list(slices))
    whole = {
        name: _with_blanks(np.concatenate([x[name] for x in found]), sampled)
        for name in found[0]
    }
    bar.update(int((~sampled).sum()))
    if first.geometry:
        whole = {name: _matrix(x, first.geometry) for name, x in whole.items()}
    images = Images(
        whole["image"], first.geometry, whole.get("deviation"), whole.get("members")
    )
    return images, [one.acceleration for one in slices.values()]


def _measured(
    volume: AnyVolume, config: Config, options: Options
) -> dict[int, AnyMeasurement]:
    """Returns the slices of a scan that are not blank, by number."""
    slices = {}
    with volumes.reading(volume.path):
        for index in volume.slices:
            if found := inputs.measure(volume, index, config, options.undersampling):
                slices[index] = found
    shapes = {one.kspace.shape for one in slices.values()}
    if len(shapes) > 1:
        raise InputError(f"{volume.path}: its slices differ in size: {sorted(shapes)}.")
    if config.data.coils.separate:
        return _compressed(slices, config.data.coils.count)
    return slices


def _with_blanks(images: np.ndarray, sampled: np.ndarray) -> np.ndarray:
    """Adds blank slices: images (N, ...) to (S, ...), zero where not `sampled` (S,)."""
    whole = np.zeros((len(sampled), *images.shape[1:]), images.dtype)
    whole[sampled] = images
    return whole


def _matrix(images: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Crops images (..., H, W) to the matrix in the file's header."""
    rows, columns = (
        min(n, m) for n, m in zip(images.shape[-2:], geometry.matrix, strict=True)
    )
    return transforms.centre_crop(images, (rows, columns))


def _compressed(
    slices: dict[int, AnyMeasurement], count: int
) -> dict[int, AnyMeasurement]:
    """Compresses the coils of a scan to virtual ones."""
    calibration = np.stack([one.calibration for one in slices.values()])
    compression = coils.compression(calibration, count)
    return {
        index: dataclasses.replace(
            one,
            kspace=np.tensordot(compression, one.kspace, 1),
            calibration=np.tensordot(compression, one.calibration, 1),
        )
        for index, one in slices.items()
    }


def _maps(
    volume: AnyVolume, slices: dict[int, AnyMeasurement], options: CoilsConfig
) -> np.ndarray | None:
    """Estimates the coils' maps (S, C, H, W, 2); None for one coil."""
    if volume.coils == 1:
        return None
    maps = []
    for index, one in slices.items():
        try:  # one by one: repetitions may be sampled differently
            found = sensitivities.maps_of(one.calibration, options)
        except InputError as error:
            raise InputError(f"{volume.path}: slice {index}: {error}") from None
        maps.append(np.stack([found.real, found.imag], axis=-1))
    return np.stack(maps)


def _batches(
    volume: AnyVolume,
    slices: dict[int, AnyMeasurement],
    maps: np.ndarray | None,
    config: Config,
    options: Options,
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray, int]]:
    """Yields batches of equal shape; pads the last one with its last slice."""
    patch = config.model.patch
    layout = inputs.layout_of(list(slices.values()), patch)
    numbered = list(slices.items())
    for first in range(0, len(slices), options.batch_size):
        part = numbered[first : first + options.batch_size]
        padded = part + [part[-1]] * (options.batch_size - len(part))
        prepared = []
        for n, (index, one) in enumerate(padded):
            own = None if maps is None else maps[min(first + n, len(maps) - 1)]
            where = f"{volume.path}: slice {index}"
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
