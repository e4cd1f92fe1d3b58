"""The files that an evaluation writes, and the means that it prints."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from kst_jax import figures, metrics
from kst_jax.config import Config
from kst_jax.data.sources import About, Source
from kst_jax.data.transforms import centre_crop
from kst_jax.evaluation.uncertainty import Uncertainty
from kst_jax.fourier import fft2c, magnitude
from kst_jax.models import registry
from kst_jax.models.attention_maps import Attention
from kst_jax.patterns import Patterns
from kst_jax.programs import files

METHODS = ("zero_filled", "reconstruction")
_LISTED = 10  # people whose coverage is printed
# Properties of volumes whose means are also given one by one.
GROUPS = ("acceleration", "acquisition")
_VOLUME_SCORES = {
    "nmse": metrics.volume_nmse,
    "psnr": metrics.volume_psnr,
    "ssim": metrics.volume_ssim,
}
# The config and the parts of the network decide which of them are drawn.
FIGURES = tuple(
    f"figures/{name}"
    for name in (
        *("slices.npz", "reconstructions.png", "stages.png", "attention.png"),
        *("coils.png", "deviations.png", "calibration.png"),
    )
)
# Columns of Fig. 3, as far as the model has these parts.
_STAGES = {
    "lr": "LR",
    "upsampled": "Upsampled",
    "kspace": "HR before refinement",
    "refined": "HR",
    "image": "Reconstruction",
    "target": "Target",
}


def earlier(out: Path) -> list[str]:
    """Lists earlier results in a folder that the next evaluation may not rewrite."""
    old = (out / "reconstructions").glob("*.h5")
    return [*FIGURES, *(f"reconstructions/{path.name}" for path in old)]


class Report:
    """Collects an evaluation in a new folder; holds images of one volume at a time.

    Args:
      out: the folder.
      config: config of the evaluation.
      test: the result of `identify`.
      reached: `step` of the checkpoint, and its training `stage`.
      source: test slices.
      sampler: their masks or trajectories.
      uncertainty: collects how well deviations match errors; None without deviations.

    Attributes:
      chosen: numbers of the slices that the figures show.
    """

    def __init__(
        self,
        out: Path,
        config: Config,
        test: dict[str, Any],
        reached: dict[str, Any],
        source: Source,
        sampler: Patterns,
        uncertainty: Uncertainty | None = None,
    ):
        self._out, self._source, self._reached = out, source, reached
        self._sampler, self._native = sampler, config.data.native
        self._uncertainty = uncertainty
        self._title = registry.build(config.model).title
        self._unaided = config.mask.unaided
        self._test, self._fingerprints = test, source.fingerprints
        for folder in ("reconstructions", "figures"):
            (out / folder).mkdir()
        middles = (np.arange(config.eval.figures) + 0.5) / max(config.eval.figures, 1)
        self.chosen = np.unique((len(source) * middles).astype(int)).tolist()
        self._shown: list[dict] = []
        self._open: list[tuple[About, dict]] = []
        self._slices: list[dict] = []
        self._volumes: dict[str, dict] = {}

    def add(self, number: int, found: dict) -> None:
        """Adds slice `number` of the source; slices of a volume follow each other."""
        about = self._source.describe(number)
        if self._open and self._open[-1][0].volume != about.volume:
            self._close_volume()
        self._open.append((about, found["images"]))
        scores = jax.tree.map(float, found["scores"])
        self._slices.append({"volume": about.volume, "slice": about.index, **scores})
        if number in self.chosen:
            self._shown.append(found)

    def finish(self) -> dict:
        """Writes figures and metrics.json, prints the means and returns the metrics."""
        self._close_volume()
        if self._shown:
            self._write_figures()
        report = {
            "test": self._test,
            **self._reached,
            "kspace": _kspace(self._source.measured),
            "slices": {
                "count": len(self._slices),
                "convention": "paper: range of each target slice, mean over slices",
                **_mean_and_std(
                    [{k: s[k] for k in ("normalised", "input")} for s in self._slices]
                ),
            },
            "volumes": {
                "count": len(self._volumes),
                "convention": "fastMRI: maximum of each target volume, input's units",
                **_means(self._volumes.values()),
            },
            **{f"by_{name}": self._means_by(name) for name in GROUPS},
            **(
                {"uncertainty": self._uncertainty.summary()}
                if self._uncertainty
                else {}
            ),
            "per_volume": self._volumes,
            "per_slice": self._slices,
        }
        with files.whole(self._out / "metrics.json") as path:
            path.write_text(json.dumps(_finite(report), indent=1, allow_nan=False))
        self._print(report)
        return report

    def _close_volume(self) -> None:
        """Writes the current volume and scores it with fastMRI's metrics."""
        abouts, parts = zip(*self._open, strict=True)
        self._open = []
        images = {name: np.stack([x[name] for x in parts]) for name in parts[0]}
        about = abouts[0]
        name = about.volume
        with (
            files.whole(self._out / "reconstructions" / f"{name}.h5") as path,
            h5py.File(path, "w") as file,
        ):
            for part in ("reconstruction", "deviation"):
                if part in images:
                    file[part] = images[part]
            file["slice"] = [about.index for about in abouts]
            file.attrs["kspace"] = _kspace(about.measured)
        if self._native:
            images = {name: _square(x) for name, x in images.items()}
        self._volumes[name] = {
            "subject": about.subject,
            **self._fingerprints[name],
            "acceleration": self._sampler.fixed_acceleration(about.file),
            "acquisition": about.acquisition,
            **{m: _volume_scores(images[m], images["target"]) for m in METHODS},
        }
        if self._uncertainty:
            self._volumes[name]["uncertainty"] = self._uncertainty.add(
                about.subject,
                *(images[part] for part in ("reconstruction", "target", "deviation")),
            )

    def _write_figures(self) -> None:
        slices: dict[str, Any] = {
            name: _stacked([found["images"][name] for found in self._shown])
            for name in (*METHODS, "target", "deviation")
            if name in self._shown[0]["images"]
        }
        (sampled,) = {"mask", "trajectory"} & self._shown[0].keys()
        slices[sampled] = _stacked([found[sampled] for found in self._shown])
        # Figures that compare methods use them.
        path = self._out / "figures" / "slices.npz"
        with files.whole(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **slices)
        figure = figures.reconstruction_figure(
            {
                self._unaided: slices["zero_filled"],
                self._title: slices["reconstruction"],
            },
            slices["target"],
            slices[sampled],
        )
        figures.save(figure, self._out / "figures" / "reconstructions.png")
        if self._uncertainty:
            self._write_uncertainty(slices)
        stages = self._shown[len(self._shown) // 2]["stages"]
        images = {_STAGES[name]: stages[name] for name in _STAGES if name in stages}
        figure = figures.stages_figure(
            {name: np.asarray(magnitude(x)) for name, x in images.items()},
            {name: np.asarray(magnitude(fft2c(x))) for name, x in images.items()},
        )
        figures.save(figure, self._out / "figures" / "stages.png")

    def _write_uncertainty(self, slices: dict[str, np.ndarray]) -> None:
        """Draws deviations beside errors: of the slices shown, and of all pixels."""
        assert self._uncertainty
        figure = figures.deviation_figure(
            *(slices[name] for name in ("reconstruction", "deviation", "target"))
        )
        figures.save(figure, self._out / "figures" / "deviations.png")
        deviation, error = self._uncertainty.curve()
        if deviation.size:
            figure = figures.calibration_figure(deviation, error)
            figures.save(figure, self._out / "figures" / "calibration.png")

    def add_attention(self, attention: Mapping[str, Attention]) -> None:
        """Writes Fig. 4 for the last layers of encoder and high-resolution decoder."""
        rows = [
            figures.AttentionMaps(label, found.weights[-1], found.token, colour)
            for (label, colour), found in zip(
                (("Encoder", "red"), ("HR decoder", "blue")),
                (attention["encoder"], attention["hr_decoder"]),
                strict=True,
            )
        ]
        figure = figures.attention_figure(rows)
        figures.save(figure, self._out / "figures" / "attention.png")

    def add_coils(self, maps_CxHxWx2: np.ndarray) -> None:
        """Writes the sensitivity maps of a slice."""
        figure = figures.coils_figure(maps_CxHxWx2[..., 0] + 1j * maps_CxHxWx2[..., 1])
        figures.save(figure, self._out / "figures" / "coils.png")

    def _means_by(self, name: str) -> dict[str, dict]:
        """Returns the volumes' means by a property of theirs."""
        values = sorted({volume[name] for volume in self._volumes.values()} - {None})
        return {
            str(value): _means([v for v in self._volumes.values() if v[name] == value])
            for value in values
        }

    def _print(self, report: dict) -> None:
        slices = report["slices"]
        print(f"\n{slices['count']} slices, k-space {report['kspace']}")
        print(f"{'':16}{'normalised (as the authors)':>30}{'input units':>30}")
        print(f"{'':16}{'PSNR (dB)':>16}{'SSIM':>14}{'PSNR (dB)':>16}{'SSIM':>14}")
        for method in METHODS:
            row = f"{method.replace('_', '-'):16}"
            for scale in ("normalised", "input"):
                psnr, ssim = (slices[scale][method][x] for x in ("psnr", "ssim"))
                row += f"{psnr['mean']:8.2f} +- {psnr['std']:4.2f}"
                row += f"{ssim['mean']:8.3f} +- {ssim['std']:.2f}".rjust(15)
            print(row)
        gains = [
            slices[scale]["reconstruction"]["psnr"]["mean"]
            - slices[scale]["zero_filled"]["psnr"]["mean"]
            for scale in ("normalised", "input")
        ]
        print(
            f"PSNR over zero-filled: {gains[0]:+.2f} dB normalised, {gains[1]:+.2f} dB "
            "in input units"
        )
        if self._uncertainty:
            _print_uncertainty(report["uncertainty"])
        for name in GROUPS:
            if len(report[f"by_{name}"]) > 1:
                _print_group(name, report[f"by_{name}"])


def _print_uncertainty(found: dict) -> None:
    """Prints how good the intervals are, for everybody and by person."""
    people, level = found["by_person"], f"{100 * found['interval']:.0f} % intervals"
    title = f"{level}, scale {found['scale']:.3g}"
    print(
        f"\n{title:40}{'people':>8}{'coverage':>12}{'width':>10}{'sparsification':>18}"
        f"{'scale needed':>16}"
    )
    rows = {"all": found} | (people if len(people) <= _LISTED else {})
    for name, scores in rows.items():
        count = len(people) if name == "all" else 1
        areas = scores["sparsification"]
        print(
            f"{name:40}{count:>8}{scores['coverage']:>12.1%}{scores['width']:>10.3f}"
            f"{areas['predicted']:>10.3f} ({areas['oracle']:.3f})"
            f"{scores['calibrated_scale']:>16.3g}"
        )
    if len(people) == 1:
        print("These scales are of one person, which promises nothing about others.")


def _print_group(name: str, groups: dict[str, dict]) -> None:
    """Prints fastMRI's scores of the volumes with each value of a property."""
    print(f"\nvolumes by {name}{'NMSE':>26}{'PSNR (dB)':>12}{'SSIM':>8}")
    for value, means in groups.items():
        for method in METHODS:
            nmse, psnr, ssim = (means[method][x]["mean"] for x in _VOLUME_SCORES)
            label = f"{value or 'unknown'} ({means['count']}), {method}"
            print(f"{label:34}{nmse:12.4f}{psnr:12.2f}{ssim:8.3f}")


def _square(image_SxHxW: np.ndarray) -> np.ndarray:
    """Crops rows to the number of columns, as fastMRI's scores do."""
    side = min(image_SxHxW.shape[1:])
    return np.stack([centre_crop(image, (side, side)) for image in image_SxHxW])


def _means(volumes: Collection[dict]) -> dict:
    scores = [{name: volume[name] for name in METHODS} for volume in volumes]
    return {"count": len(scores), **_mean_and_std(scores)}


def _volume_scores(image_SxHxW: np.ndarray, target_SxHxW: np.ndarray) -> dict:
    return {
        name: float(score(image_SxHxW, target_SxHxW))
        for name, score in _VOLUME_SCORES.items()
    }


def _mean_and_std(rows: list[dict]) -> dict:
    """Returns mean and standard deviation over rows of the same nested structure."""
    return jax.tree.map(
        lambda *values: {"mean": float(np.mean(values)), "std": float(np.std(values))},
        *rows,
    )


def _stacked(slices: list[np.ndarray]) -> np.ndarray:
    """Stacks slices, padded to the largest."""
    rows, columns = np.max([x.shape for x in slices], axis=0)
    pads = [(rows - len(x), columns - x.shape[1]) for x in slices]
    return np.stack(
        [
            np.pad(x, [(n // 2, n - n // 2) for n in pad])
            for x, pad in zip(slices, pads, strict=True)
        ]
    )


def _kspace(measured: bool) -> str:
    return "measured" if measured else "simulated from magnitude images"


def _finite(value: object) -> object:
    """JSON has no infinity: a perfect slice's PSNR becomes null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
