"""The scale of predicted deviations, as an evaluation of other people found it."""

import dataclasses
from pathlib import Path

from kst_jax.errors import InputError
from kst_jax.programs import files


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What an evaluation tells of deviations.

    Attributes:
      folder: of the evaluation's results.
      scale: what deviations are multiplied by.
      runs: folders of the networks: the run, then the further members of an ensemble.
      steps: of these networks.
      people: whose scans it used.
    """

    folder: Path
    scale: float
    runs: tuple[Path, ...]
    steps: tuple[int, ...]
    people: frozenset[str]

    def require_networks(self, runs: tuple[Path, ...], steps: tuple[int, ...]) -> None:
        """Raises InputError unless it is of these networks, at these steps."""
        if tuple(run.resolve() for run in runs) != self.runs:
            raise InputError(
                f"{self.folder}: calibrates {_names(self.runs)}, not {_names(runs)}. "
                "Give the calibration of these runs."
            )
        if steps != self.steps:
            raise InputError(
                f"{self.folder}: calibrates steps {_listed(self.steps)} of its runs, "
                f"but these are at {_listed(steps)}. Choose the same checkpoint, or "
                "calibrate again."
            )

    def require_others(self, subjects: tuple[str, ...]) -> None:
        """Raises InputError if one of these people, who are tested, calibrated it."""
        if shared := sorted(self.people & set(subjects)):
            raise InputError(
                f"{shared[0]} is among the test scans, but {self.folder} was "
                "calibrated on this person; test on others"
            )


def read(folder: str | Path) -> Calibration:
    """Reads a calibration from the results of an evaluation.

    Raises:
      InputError: there is none.
    """
    folder = Path(folder)
    path = folder / "metrics.json"
    try:
        found = files.read_json(path)
        uncertainty, test = found["uncertainty"], found["test"]
        return Calibration(
            folder,
            float(uncertainty["calibrated_scale"]),
            tuple((folder / one).resolve() for one in (test["run"], *test["members"])),
            tuple(uncertainty["steps"]),
            frozenset(uncertainty["by_person"]),
        )
    except FileNotFoundError:
        raise InputError(
            f"{path}: not found; give the folder that kst-eval wrote for the "
            "calibrating people"
        ) from None
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: tells nothing of deviations. Evaluate a network that predicts "
            "them (model.deviation), or several (eval.members)."
        ) from error


def _names(runs: tuple[Path, ...]) -> str:
    return ", ".join(map(str, runs))


def _listed(steps: tuple[int, ...]) -> str:
    return ", ".join(map(str, steps))
