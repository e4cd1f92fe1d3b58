"""Evaluation: metrics, reconstructions and figures of a trained model.

    OUT/metrics.json                 means, volumes and every slice
    OUT/reconstructions/<name>.h5    magnitudes in the input's units, as in fastMRI
    OUT/figures/*.png                the paper's Figs. 2 and 3

All metrics are of magnitudes in the input's units. Zero-filled images start from the
same normalised k-space that the model gets.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kst_jax import checkpoints, figures, metrics, parallel
from kst_jax.config import Config
from kst_jax.data import pipeline, transforms
from kst_jax.data.sources import Source
from kst_jax.errors import InputError
from kst_jax.fourier import fft2c, ifft2c, magnitude
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.tokens import Batch

_METHODS = ("zero_filled", "reconstruction")
# Columns of Fig. 3, as far as the model has the parts.
_STAGE_TITLES = {
    "lr": "LR",
    "upsampled": "Upsampled",
    "kspace": "HR before refinement",
    "refined": "HR",
    "target": "Target",
}


@dataclasses.dataclass
class Slices:
    """Evaluated slices in the order of the source, on the host.

    Attributes:
      number: their numbers in the source (n,).
      images: magnitudes (n, H, W) in the input's units by name: zero_filled,
        reconstruction, target.
      mask: (n, H, W), True where sampled.
      psnr: (n,) by method, in dB (paper).
      ssim: (n,) by method (paper).
    """

    number: np.ndarray
    images: dict[str, np.ndarray]
    mask: np.ndarray
    psnr: dict[str, np.ndarray]
    ssim: dict[str, np.ndarray]


def make_reconstructor(model: KSpaceTransformer, mesh: Mesh) -> Callable:
    """Compiles reconstruction and its metrics for a batch.

    The function takes parameters, a Batch, and mean and std of its slices (B,). It
    returns, by slice, the fields of Slices, and the images (B, h, w, 2) of each stage
    of the network in the input's units.
    """

    def function(
        params: dict, batch: Batch, mean: jax.Array, std: jax.Array
    ) -> tuple[dict, dict]:
        output = model.apply({"params": params}, batch)
        stages = {name: images[-1] for name, images in output.supervised.items()}
        stages |= {"upsampled": output.upsampled, "target": batch.image}
        stages = {
            name: transforms.denormalise(image, mean, std)
            for name, image in stages.items()
        }
        zero_filled = transforms.denormalise(ifft2c(batch.kspace), mean, std)
        reconstruction = transforms.denormalise(output.image, mean, std)
        images = {
            "zero_filled": magnitude(zero_filled),
            "reconstruction": magnitude(reconstruction),
            "target": magnitude(stages["target"]),
        }
        scores = {
            score.__name__: {m: score(images[m], images["target"]) for m in _METHODS}
            for score in (metrics.psnr, metrics.ssim)
        }
        return {"images": images, "mask": batch.mask, **scores}, stages

    return parallel.map_over_devices(
        function,
        mesh,
        in_specs=(parallel.REPLICATED, *[parallel.SHARDED] * 3),
        out_specs=parallel.SHARDED,
    )


def evaluate(config: Config, workdir: str | Path) -> dict:
    """Evaluates the latest checkpoint of a run on the test scans.

    Args:
      config: test scans, undersampling and model; the model must be the checkpoint's.
      workdir: the run.

    Returns:
      What metrics.json holds.

    Raises:
      InputError: no such checkpoint, one that does not fit, scans that cannot be used,
        or a folder with results of other scans.
    """
    params, saved, step = checkpoints.read_parameters(workdir)
    checkpoints.require_same_model(saved, config, workdir)
    out = Path(config.eval.out or Path(workdir) / "eval")
    _require_same_test(out, config)
    mesh = parallel.make_mesh()
    parallel.check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    source = pipeline.open_test_source(config.data)
    model = KSpaceTransformer(config.model)
    slices, stages = _reconstruct_all(model, params, mesh, source, config)
    out.mkdir(parents=True, exist_ok=True)
    volumes = {
        name: _volume(name, chosen, slices, source, out)
        for name, chosen in _by_volume(slices, source)
    }
    report = _report(slices, volumes, source, config, step)
    _write_figures(slices, stages, config, out / "figures")
    _write_json(out / "metrics.json", report)
    _print(report, out)
    return report


def _reconstruct_all(
    model: KSpaceTransformer, params: dict, mesh: Mesh, source: Source, config: Config
) -> tuple[Slices, dict[str, np.ndarray]]:
    """All slices, and the stages' images (h, w, 2) of the middle one."""
    reconstructor = make_reconstructor(model, mesh)
    params = parallel.replicate(params, mesh)
    sampler = pipeline.open_sampler(config)
    parts, numbers, stages = [], [], {}
    with tqdm(desc="Evaluating", unit="slice", total=len(source)) as bar:
        for test in pipeline.test_batches(source, config, sampler):
            found, images = reconstructor(
                params, *parallel.shard((test.batch, test.mean, test.std), mesh)
            )
            real = test.number >= 0
            parts.append(jax.tree.map(lambda x, keep=real: np.asarray(x)[keep], found))
            numbers.append(test.number[real])
            if len(source) // 2 in test.number:
                place = test.number.tolist().index(len(source) // 2)
                stages = {name: np.asarray(x)[place] for name, x in images.items()}
            bar.update(int(real.sum()))
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return Slices(number=np.concatenate(numbers), **joined), stages


def _by_volume(slices: Slices, source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """Each volume's name and the places of its slices."""
    names = np.array([source.describe(number).volume for number in slices.number])
    for name in dict.fromkeys(names.tolist()):
        yield name, np.flatnonzero(names == name)


def _volume(
    name: str, chosen: np.ndarray, slices: Slices, source: Source, out: Path
) -> dict:
    """Writes a volume's reconstruction and returns its metrics in fastMRI's manner."""
    target = slices.images["target"][chosen]
    about = [source.describe(number) for number in slices.number[chosen]]
    path = out / "reconstructions" / f"{name}.h5"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with h5py.File(temporary, "w") as file:
        file["reconstruction"] = slices.images["reconstruction"][chosen]
        file["slice"] = [item.index for item in about]
        file.attrs["kspace"] = _kspace(about[0].measured)
    os.replace(temporary, path)
    return {
        "subject": about[0].subject,
        "slices": len(chosen),
        **{
            method: {
                score: float(
                    getattr(metrics, f"volume_{score}")(
                        slices.images[method][chosen], target
                    )
                )
                for score in ("nmse", "psnr", "ssim")
            }
            for method in _METHODS
        },
    }


def _report(
    slices: Slices, volumes: dict, source: Source, config: Config, step: int
) -> dict:
    def mean_and_std(values: np.ndarray) -> dict:
        return {"mean": float(values.mean()), "std": float(values.std())}

    per_slice = []
    for place, number in enumerate(slices.number):
        about = source.describe(number)
        scores = {
            method: {
                "psnr": float(slices.psnr[method][place]),
                "ssim": float(slices.ssim[method][place]),
            }
            for method in _METHODS
        }
        per_slice.append({"volume": about.volume, "slice": about.index, **scores})
    return {
        "step": step,
        "kspace": _kspace(source.measured),
        "test": _test_of(config),
        "slices": {
            "count": len(slices.number),
            "convention": "paper: range of each target slice; mean over slices",
            **{
                method: {
                    "psnr": mean_and_std(slices.psnr[method]),
                    "ssim": mean_and_std(slices.ssim[method]),
                }
                for method in _METHODS
            },
        },
        "volumes": {
            "count": len(volumes),
            "convention": "fastMRI: maximum of each target volume; mean over volumes",
            **{
                method: {
                    score: mean_and_std(
                        np.array([v[method][score] for v in volumes.values()])
                    )
                    for score in ("nmse", "psnr", "ssim")
                }
                for method in _METHODS
            },
        },
        "per_volume": volumes,
        "per_slice": per_slice,
    }


def _kspace(measured: bool) -> str:
    return "measured" if measured else "simulated from magnitude images"


def _test_of(config: Config) -> dict:
    """What decides which slices are evaluated, and how they are undersampled."""
    data = dataclasses.asdict(config.data)
    del data["augment"]
    return json.loads(
        json.dumps({"data": data, "mask": dataclasses.asdict(config.mask)})
    )


def _require_same_test(out: Path, config: Config) -> None:
    path = out / "metrics.json"
    if path.exists() and json.loads(path.read_text()).get("test") != _test_of(config):
        raise InputError(
            f"{out}: holds the results of other test scans or another undersampling; "
            "name another folder with --config.eval.out"
        )


def _write_json(path: Path, values: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(temporary, path)


def _write_figures(
    slices: Slices, stages: dict[str, np.ndarray], config: Config, folder: Path
) -> None:
    """The paper's Fig. 2 for slices spread over the test scans, Fig. 3 for one."""
    if not config.eval.figures:
        return
    folder.mkdir(exist_ok=True)
    count = len(slices.number)
    middles = (np.arange(config.eval.figures) + 0.5) / config.eval.figures
    chosen = np.unique((count * middles).astype(int))
    methods = {
        "Zero-filled": slices.images["zero_filled"][chosen],
        "K-Space Transformer": slices.images["reconstruction"][chosen],
    }
    figure = figures.reconstruction_figure(
        methods, slices.images["target"][chosen], slices.mask[chosen]
    )
    figures.save(figure, folder / "reconstructions.png")
    shown = {
        _STAGE_TITLES[name]: stages[name] for name in _STAGE_TITLES if name in stages
    }
    figure = figures.stages_figure(
        {name: np.asarray(magnitude(image)) for name, image in shown.items()},
        {name: np.asarray(magnitude(fft2c(image))) for name, image in shown.items()},
    )
    figures.save(figure, folder / "stages.png")


def _print(report: dict, out: Path) -> None:
    rows = report["slices"]
    print(f"\n{rows['count']} slices, k-space {report['kspace']}")
    print(f"{'':16}{'PSNR (dB)':>18}{'SSIM':>20}")
    for method in _METHODS:
        psnr, ssim = rows[method]["psnr"], rows[method]["ssim"]
        print(
            f"{method.replace('_', '-'):16}{psnr['mean']:>10.2f} +- {psnr['std']:<5.2f}"
            f"{ssim['mean']:>11.4f} +- {ssim['std']:.4f}"
        )
    gain = rows["reconstruction"]["psnr"]["mean"] - rows["zero_filled"]["psnr"]["mean"]
    print(f"gain over zero-filled: {gain:+.2f} dB\nwritten to {out}")
