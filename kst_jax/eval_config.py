"""Config of evaluations."""

import dataclasses

from kst_jax.errors import require_setting


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How a model is evaluated.

    Attributes:
      batch_size: slices at a time, over all devices.
      query_devices: devices that share the high-resolution queries of each slice, which
        reconstructs a few slices sooner; must divide the number of devices of a
        process. Only the K-Space Transformer has such queries; other networks gain
        nothing.
      figures: slices shown in the figures, spread over the test scans; at most 24.
      seed: seed of the test masks and of the draw of slices from `data.test`; separate
        from the training seeds, so that runs with different seeds share one test.
      out: folder for metrics, reconstructions and figures; if empty, `eval` in the
        run's folder.
      members: folders of further runs, with commas, that differ from the run in
        `train.seed`: they form an ensemble with it, whose image is the mean of theirs
        and whose spread tells what the image does not know.
      calibration: folder of another evaluation of the same networks, of people who are
        not tested here: it scales the deviations. If empty, they stay as predicted.
      checkpoint: "latest", or "best": the best in validation among those kept
        (`train.validate_every`, `train.keep_best`).
    """

    batch_size: int = 4
    query_devices: int = 1
    figures: int = 3
    seed: int = 0
    out: str = ""
    members: str = ""
    calibration: str = ""
    checkpoint: str = "latest"

    def __post_init__(self):
        """Raises InputError for values out of range."""
        which = ("latest", "best")
        require_setting(
            self.checkpoint in which,
            "eval.checkpoint",
            self.checkpoint,
            f"one of {which}",
        )
        for name in ("batch_size", "query_devices"):
            value = getattr(self, name)
            require_setting(value >= 1, f"eval.{name}", value, "at least 1")
        require_setting(
            0 <= self.figures <= 24, "eval.figures", self.figures, "from 0 to 24"
        )

    @property
    def further_runs(self) -> tuple[str, ...]:
        """The folders that `members` names."""
        return tuple(filter(None, (part.strip() for part in self.members.split(","))))
