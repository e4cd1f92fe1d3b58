"""The scans of a training run: who is trained on, who it is validated on."""

from pathlib import Path

from kst_jax.config import Config
from kst_jax.data import opening, sensitivities
from kst_jax.data.sources import Source
from kst_jax.runs import fields_of_view, subjects, training_files


def open_scans(
    config: Config, workdir: str | Path, maps: Path | None, *, carries_on: bool
) -> tuple[Source, Source | None]:
    """Opens a run's scans and records whose they are, which files and what they show.

    Args:
      config: the run.
      workdir: the run's folder.
      maps: folder that keeps the coils' sensitivity maps; by default `maps` in the
        workdir.
      carries_on: whether the run has checkpoints, so that its people and files must
        stay.

    Returns:
      Scans to train on, and those to validate on if the run validates.

    Raises:
      InputError: scans are unusable, or other ones than the run began with.
    """
    source, test = opening.open_sources(config)
    source, validation = opening.set_validation_apart(config, source, test)
    kept = maps or Path(workdir) / "maps"
    print(f"Training on {source}; held out for testing: {test or 'nobody'}")
    if validation:
        print(f"Validating on {validation}")
        validation = sensitivities.estimate(validation, config, kept)
    people = {
        "train": source.subjects,
        "validation": validation.subjects if validation else (),
    }
    subjects.write(workdir, people, carries_on=carries_on)
    bank = opening.bank_checksum(config)
    training_files.write(workdir, source.fingerprints, bank, carries_on=carries_on)
    fields_of_view.write(workdir, opening.fields_of_view(source, config))
    sets = config.data.coils.sets
    return sensitivities.estimate(source, config, kept, sets), validation
