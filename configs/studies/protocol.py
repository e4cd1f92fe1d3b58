"""The parts that all studies share: the paper's settings, methods and tables."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from kst_jax.configs import admm, d5c5, default, kst_plus, kunet, oucr, tv, unet

ABLATION = "Table 3: ablation"
_PATTERNS = (
    ("uniform_1d", "5", 5.0),
    ("gaussian_2d", "5", 5.0),
    ("uniform_1d", "2_5", 2.5),
    ("gaussian_2d", "10", 10.0),
    ("gaussian_2d", "2_5", 2.5),
)


def settings(calibration: int) -> dict[str, dict[str, Any]]:
    """Returns the paper's five settings.

    Args:
      calibration: number of fully sampled centre columns of the uniform 1D settings,
        included in their budget. The paper does not give it; code that it cites samples
        5 of 128.
    """
    return {
        f"{kind.replace('_', '')}_{name}x": {
            "kind": kind,
            "acceleration": acceleration,
            "calibration": calibration if kind == "uniform_1d" else 0,
        }
        for kind, name, acceleration in _PATTERNS
    }


def compared(**kst: Any) -> dict[str, dict[str, Any]]:
    """Returns the published methods, total variation and `configs/kst_plus.py`.

    The last row is `kst_plus` without its attention, which tells what attention gives.

    Args:
      **kst: changes to the K-Space Transformer's section `model`.
    """
    transformer, improved = default.get_config(), kst_plus.get_config()
    transformer.model.update(kst)
    # Patches that suit one setting may not suit another.
    improved.model.update(kst, patch=(1, 1))
    learned = {
        "kunet": kunet.get_config(),
        "unet": unet.get_config(),
        "admm": admm.get_config(),
        "d5c5": d5c5.get_config(),
        "oucr": oucr.get_config(),
        "kst": transformer,
    }
    weight = tv.get_config()
    images = weight.train.steps * weight.train.batch_size
    plus = method(improved, title=kst_plus.TITLE)
    return {
        "tv": method(weight, images=images),
        **{name: method(config) for name, config in learned.items()},
        "kst_plus": plus,
        "kst_twin": changed(plus, kst_plus.TWIN, {"transformer": False}),
    }


def method(config: ConfigDict, **options: Any) -> dict[str, Any]:
    """Makes a method from a run's config: its network and its training."""
    return {
        "model": config.model.to_dict(),
        "train": config.train.to_dict(),
        **options,
    }


def changed(
    method: dict[str, Any], title: str, model: dict[str, Any], **train: Any
) -> dict[str, Any]:
    """Returns a method with other values in its sections `model` and `train`."""
    sections = {"model": method["model"] | model, "train": method["train"] | train}
    return {**method, **sections, "title": title}


def study(
    settings: dict[str, dict], methods: dict[str, dict], **values: Any
) -> ConfigDict:
    """Makes a study of the paper's Tables 1 to 3.

    Args:
      settings: masks, by name.
      methods: rows of Tables 1 and 2, by name; "kst" is one of them.
      **values: other fields of a study; see `kst_jax.study.protocol.Study`.
    """
    config = default.get_config()
    config.data.augment.phase = 0.0  # as published
    without = {
        "kst_no_rm": changed(methods["kst"], "No RM", {"refinement": False}),
        "kst_no_lrd_rm": changed(
            methods["kst"],
            "No LRD, no RM",
            {"refinement": False, "lr_decoder": False},
        ),
    }
    tables = {
        title: table(columns, methods)
        for title, kind in (
            ("Table 1: uniform 1D sampling", "uniform1d"),
            ("Table 2: Gaussian 2D sampling", "gaussian2d"),
        )
        if (columns := [name for name in settings if name.startswith(kind)])
    }
    tables[ABLATION] = table(["gaussian2d_5x", "uniform1d_5x"], ["kst", *without])
    values = {"images": 0, "references": ("kst", "kst_plus"), **values}
    return define(config, settings, methods | without, tables, **values)


def define(
    config: ConfigDict,
    settings: dict[str, dict],
    methods: dict[str, dict],
    tables: dict[str, dict],
    **values: Any,
) -> ConfigDict:
    """Makes a study of one seed, in which each setting is run in turn.

    Args:
      config: its data and its evaluation.
      settings: masks, by name.
      methods: rows, by name.
      tables: by title; see `table`.
      **values: other fields of a study; see `kst_jax.study.protocol.Study`.
    """
    return ConfigDict(
        {
            "data": config.data.to_dict(),
            "eval": config.eval.to_dict(),
            "seeds": (0,),
            "order": tuple(settings),
            "settings": settings,
            "methods": methods,
            "tables": tables,
            **values,
        }
    )


def table(settings: Iterable[str], methods: Iterable[str]) -> dict[str, list[str]]:
    """Makes a table with these columns and rows."""
    return {"settings": list(settings), "methods": list(methods)}
