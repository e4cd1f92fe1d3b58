"""A study's results: the paper's tables and figures, with confidence intervals.

A cell's score is the mean PSNR and SSIM over the test slices, by the authors'
convention (normalised magnitudes, range of each target slice). Methods are compared
slice by slice: the interval of a difference comes from a paired bootstrap. It resamples
blocks of neighbouring slices within each person, since neighbours resemble each other
(H. R. Kuensch, "The jackknife and the bootstrap for general stationary observations",
Annals of Statistics 1989; circular blocks). It says how certain the difference between
these trained networks is on these people; it says nothing about other people, nor about
another training.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kst_jax import figures
from kst_jax.programs import files
from kst_jax.study.protocol import ZERO_FILLED, Cell, Study, config_of, title_of

METRICS = ("psnr", "ssim")
_DIGITS = {"psnr": 2, "ssim": 3}
_SCALES = ("normalised", "input")
_DRAWS = 10_000
_BLOCK = 16  # slices; differences of methods were correlated up to this distance
_MIN_BLOCKS = 4  # per person; a single circular block always has the same mean


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a method at a setting, means over its seeds.

    Attributes:
      per_slice: scores (slices,) by scale and metric.
      subject: person of each slice (slices,).
    """

    per_slice: Mapping[tuple[str, str], np.ndarray]
    subject: np.ndarray


def paired_interval(
    difference: np.ndarray, subject: np.ndarray, block: int = _BLOCK
) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the mean of paired differences.

    Args:
      difference: differences (slices,) of two methods' scores, neighbours adjacent.
      subject: person of each slice (slices,); blocks are resampled within a person.
      block: largest number of slices drawn together, at most a quarter of a person's;
        blocks are circular: the first slice follows the last.
    """
    rng = np.random.default_rng(0)
    total = np.zeros(_DRAWS)
    for person in np.unique(subject):
        values = difference[subject == person]
        n = len(values)
        length = max(1, min(block, n // _MIN_BLOCKS))
        starts = rng.integers(n, size=(_DRAWS, -(-n // length), 1))
        drawn = (starts + np.arange(length)) % n
        total += values[drawn.reshape(_DRAWS, -1)[:, :n]].sum(axis=1)
    low, high = np.quantile(total / len(difference), [0.025, 0.975])
    return float(low), float(high)


def gather(
    study: Study, results: Mapping[Cell, dict], setting: str, method: str
) -> Scores | None:
    """Returns a method's scores at a setting; None if none of its cells is finished.

    Zero-filled images, which every cell scores, count as a method of that name.
    """
    cells = [cell for cell in results if cell.setting == setting]
    if method == ZERO_FILLED:
        cells, which = _of_own_coils(study, cells), ZERO_FILLED
    else:
        cells, which = [c for c in cells if c.method == method], "reconstruction"
    if not cells:
        return None
    found = [results[cell]["per_slice"] for cell in cells]
    per_slice = {
        (scale, metric): np.mean(
            [[row[scale][which][metric] for row in rows] for rows in found], axis=0
        )
        for scale in _SCALES
        for metric in METRICS
    }
    return Scores(per_slice, np.array([row["subject"] for row in found[0]]))


def _of_own_coils(study: Study, cells: list[Cell]) -> list[Cell]:
    """Returns the cells that see the study's coils as they are; all if none does.

    A method may change coils or target, and so what zero-filled images are.
    """
    own = [c for c in cells if config_of(study, c).data.coils == study.data.coils]
    return own or cells


def summary(
    study: Study, results: Mapping[Cell, dict], setting: str, method: str
) -> dict[str, Any] | None:
    """Returns means, spreads and differences from the references, as in tables.json."""
    scores = gather(study, results, setting, method)
    if scores is None:
        return None
    cells = {
        cell: result
        for cell, result in results.items()
        if (cell.setting, cell.method) == (setting, method)
    }
    found: dict[str, Any] = {
        "seeds": [cell.seed for cell in cells],
        "slices": len(scores.subject),
        "people": len(np.unique(scores.subject)),
        "parameters": max([r["parameters"] for r in cells.values()], default=0),
        "images": max([r["images"] for r in cells.values()], default=0),
        "train_s": float(np.mean([r["train_s"] for r in cells.values()] or [0.0])),
        "device": ", ".join(dict.fromkeys(r["device"] for r in cells.values())),
    }
    for (scale, metric), values in scores.per_slice.items():
        of_scale = found.setdefault(scale, {})
        of_scale[metric] = {"mean": float(values.mean()), "std": float(values.std())}
    references = {
        name: gather(study, results, setting, name)
        for name in study.references
        if name != method
    }
    found["less_this"] = {
        name: _differences(reference, scores)
        for name, reference in references.items()
        if reference is not None
    }
    return found


def _differences(reference: Scores, other: Scores) -> dict[str, dict[str, dict]]:
    """Returns how much better the reference is, by scale and metric."""
    found: dict[str, dict[str, dict]] = {scale: {} for scale in _SCALES}
    for (scale, metric), values in reference.per_slice.items():
        difference = values - other.per_slice[scale, metric]
        interval = paired_interval(difference, other.subject)
        found[scale][metric] = {
            "mean": float(difference.mean()),
            "interval_95": list(interval),
        }
    return found


def tabulate(study: Study, results: Mapping[Cell, dict]) -> dict[str, dict]:
    """Returns all tables: title, method and setting to a `summary`, or None."""
    return {
        title: {
            method: {
                setting: summary(study, results, setting, method)
                for setting in table.settings
            }
            for method in (ZERO_FILLED, *table.methods)
        }
        for title, table in study.tables.items()
    }


def markdown(study: Study, tables: Mapping[str, dict]) -> str:
    """Formats the tables as in the paper, with the differences below each."""
    parts = []
    for title, rows in tables.items():
        settings = study.tables[title].settings
        head = ["method", "parameters", "images", "minutes"]
        found = {
            name: [row[setting] for setting in settings] for name, row in rows.items()
        }
        scores = [
            [title_of(study, name), *_about(each), *_columns(each, _score)]
            for name, each in found.items()
        ]
        columns = [
            f"{name} {metric}" for name in settings for metric in ("PSNR", "SSIM")
        ]
        parts += [
            f"## {title}",
            "PSNR in dB and SSIM of normalised magnitudes: mean +- standard deviation "
            "over slices.",
            _table([*head, *columns], scores),
        ]
        for reference in (name for name in study.references if name in found):
            differences = [
                [title_of(study, name), *_columns(each, partial(_gain, reference))]
                for name, each in found.items()
                if name != reference
            ]
            parts += [
                f"{title_of(study, reference)} minus each method: mean difference, and "
                "its 95 % interval by a paired bootstrap over blocks of up to "
                f"{_BLOCK} neighbouring slices within people.",
                _table(["method", *columns], differences),
            ]
    return "\n\n".join(parts) + "\n"


def _about(found: Sequence[dict | None]) -> list[str]:
    """Tabulates parameters, images and mean training minutes at a table's settings.

    Minutes on different devices are not averaged but listed with each device's name.
    """
    trained = [each for each in found if each and each["images"]]
    if not trained:
        return [""] * 3
    seconds: dict[str, list[float]] = {}
    for each in trained:
        seconds.setdefault(each["device"], []).append(each["train_s"])
    minutes = {device: f"{np.mean(s) / 60:.0f}" for device, s in seconds.items()}
    return [
        f"{trained[0]['parameters']:,}",
        f"{trained[0]['images']:,}",
        "; ".join(
            text if len(minutes) == 1 else f"{text} ({device})"
            for device, text in minutes.items()
        ),
    ]


def _columns(
    found: Sequence[dict | None], text: Callable[[dict | None, str], str]
) -> list[str]:
    return [text(each, metric) for each in found for metric in METRICS]


def _score(found: dict | None, metric: str) -> str:
    if found is None:
        return "-"
    value, digits = found["normalised"][metric], _DIGITS[metric]
    return f"{value['mean']:.{digits}f} +- {value['std']:.{digits}f}"


def _gain(reference: str, found: dict | None, metric: str) -> str:
    if found is None or reference not in found["less_this"]:
        return "-"
    gain = found["less_this"][reference]["normalised"][metric]
    digits, (low, high) = _DIGITS[metric], gain["interval_95"]
    return f"{gain['mean']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(study: Study, results: Mapping[Cell, dict], workdir: Path) -> str:
    """Writes tables.md, tables.json and figures from the finished cells.

    Returns:
      The tables.
    """
    tables = tabulate(study, results)
    text = markdown(study, tables)
    with files.whole(workdir / "tables.json") as path:
        path.write_text(json.dumps(tables, indent=1) + "\n")
    with files.whole(workdir / "tables.md") as path:
        path.write_text(text)
    (workdir / "figures").mkdir(exist_ok=True)
    for setting in study.order:
        _write_figures(study, results, setting, workdir)
    return text


def _write_figures(
    study: Study, results: Mapping[Cell, dict], setting: str, workdir: Path
) -> None:
    curves, images = {}, {}
    for cell, result in results.items():
        name = title_of(study, cell.method)
        if cell.setting == setting and name not in curves:  # first seed only
            curves[name] = result["curve"]
            path = workdir / "results" / f"{cell.name}.npz"
            if path.exists():
                images[cell] = dict(np.load(path, allow_pickle=False))
    if not curves:
        return
    figure = figures.learning_figure(curves)
    figures.save(figure, workdir / "figures" / f"{setting}_curves.png")
    if images:
        first = images[_of_own_coils(study, list(images))[0]]
        figure = figures.reconstruction_figure(
            {
                title_of(study, ZERO_FILLED): first[ZERO_FILLED],
                **{
                    title_of(study, cell.method): each["reconstruction"]
                    for cell, each in images.items()
                },
            },
            first["target"],
            first["mask"] if "mask" in first else first["trajectory"],
        )
        figures.save(figure, workdir / "figures" / f"{setting}_methods.png")
