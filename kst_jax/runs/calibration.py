"""The scale of predicted deviations, as an evaluation of other people found it."""

import dataclasses
import json
import math
import sys
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath
from typing import Any

from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.programs import files
from kst_jax.runs.ensembles import Network


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What an evaluation says about deviations.

    Attributes:
      folder: of the evaluation's results.
      scale: what deviations are multiplied by.
      runs: fingerprint of each network to the folder of its run.
      people: whose scans were used.
      mask: the undersampling.
    """

    folder: Path
    scale: float
    runs: dict[str, Path]
    people: tuple[str, ...]
    mask: dict[str, Any]

    def other_runs(self, network: Network) -> list[Path]:
        """Returns the folders of the other members of a network's ensemble.

        Raises:
          InputError: the network is not among those that were calibrated.
        """
        if network.fingerprint not in self.runs:
            raise InputError(
                f"{self.folder}: calibrates {self._names}, but not {network.run} at "
                f"step {network.step}. Choose the same checkpoint, or calibrate again."
            )
        return [run for mark, run in self.runs.items() if mark != network.fingerprint]

    def require_networks(self, networks: Sequence[Network]) -> None:
        """Raises InputError unless the calibration is of these networks."""
        if {one.fingerprint for one in networks} != set(self.runs):
            names = ", ".join(f"{one.run} at step {one.step}" for one in networks)
            raise InputError(
                f"{self.folder}: calibrates {self._names}, not {names}. Give the "
                "calibration of these networks, or calibrate again."
            )

    def require_mask(self, mask: MaskConfig) -> None:
        """Raises InputError unless the calibration is of the same undersampling."""
        if difference := self._difference(mask):
            raise InputError(
                f"{self.folder}: was calibrated with another undersampling: "
                f"{difference}. Calibrate again with the undersampling of the test."
            )

    def warn_of(self, mask: MaskConfig) -> None:
        """Warns if a network's training had another undersampling."""
        if difference := self._difference(mask):
            print(
                f"warning: {self.folder}: was calibrated with another undersampling "
                f"than the network was trained with: {difference}",
                file=sys.stderr,
            )

    def require_others(
        self, subjects: Sequence[str], folders: Collection[str] = ()
    ) -> None:
        """Raises InputError if one of these people, who are tested, calibrated it.

        Warns if a folder of the test scans has the name of such a person.
        """
        if shared := sorted(set(self.people) & set(subjects)):
            raise InputError(
                f"{shared[0]} is among the test scans, but {self.folder} was "
                "calibrated on this person; test on others, or say who is who with "
                "--config.data.subjects"
            )
        if near := sorted(set(self.people) & set(folders)):
            print(
                f"warning: a folder of the test scans is called {near[0]}, and "
                f"{self.folder} was calibrated on a person of this name; say who is "
                "who with --config.data.subjects",
                file=sys.stderr,
            )

    @property
    def worth(self) -> str:
        """Says how far the calibration can be trusted."""
        if len(self.people) > 1:
            return f"deviations are calibrated on {len(self.people)} people"
        return (
            "deviations are calibrated on one person, which promises nothing about "
            "others"
        )

    def _difference(self, mask: MaskConfig) -> str:
        here, there = _comparable(dataclasses.asdict(mask)), _comparable(self.mask)
        return ", ".join(
            f"mask.{name} is {there.get(name)} there and {value} here"
            for name, value in here.items()
            if value != there.get(name)
        )

    @property
    def _names(self) -> str:
        return ", ".join(map(str, self.runs.values()))


def read(folder: str | Path) -> Calibration:
    """Reads a calibration from the results of an evaluation.

    Raises:
      InputError: there is none.
    """
    folder = files.local_folder(folder).resolve()
    path = folder / "metrics.json"
    try:
        report = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path}: not found; give the folder that kst-eval wrote for the "
            "calibrating people"
        ) from None
    if not isinstance(report, dict) or "uncertainty" not in report:
        raise InputError(
            f"{path}: has no deviations. Evaluate a network that predicts them "
            "(model.deviation), or several (eval.members), trained to the last stage."
        )
    try:
        found = Calibration(
            folder,
            report["uncertainty"]["calibrated_scale"],
            {
                str(one["parameters"]): (folder / one["run"]).resolve()
                for one in report["networks"]
            },
            tuple(report["uncertainty"]["by_person"]),
            _comparable(report["test"]["mask"]),
        )
        if type(found.scale) is not float or not 0 < found.scale < math.inf:
            raise ValueError(f"the scale is {found.scale}")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}). Evaluate the calibrating people again."
        ) from error
    return found


def _comparable(mask: dict[str, Any]) -> dict[str, Any]:
    """Returns a mask's settings as JSON has them; a bank counts by its name."""
    return json.loads(json.dumps(mask)) | {"bank": PurePath(mask["bank"]).name}
