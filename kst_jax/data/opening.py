"""What a run reads: its scans, who is set apart, and how slices are undersampled."""

from pathlib import Path

from kst_jax import sampling
from kst_jax.config import Config
from kst_jax.data import (
    measured,
    native,
    sources,
    splits,
    trajectory_sampling,
    transforms,
    volumes,
)
from kst_jax.data.readers.npy import read_mask_bank
from kst_jax.data.sources import Source
from kst_jax.errors import InputError, require_setting
from kst_jax.patterns import Patterns
from kst_jax.programs import files

_OWN_POINTS = (
    "; or validate on points that training never sees: "
    "--config.train.validation_share=0.2"
)


def open_sources(config: Config) -> tuple[Source, Source]:
    """Opens the training and test scans, which never share a person.

    Of scans undersampled already nobody is set apart: there is nothing to score with.

    Raises:
      InputError: scans cannot be used, or both contain the same person.
    """
    data = config.data
    if not data.test:
        everyone = _open(config, data.train, data.draw_seed)
        if config.mask.measured:
            return everyone, everyone.select(())
        kept, apart = sources.split_subjects(
            everyone.subjects, 1 - data.test_fraction, data.split_seed
        )
        train = everyone.select(kept)
        _require_unmoved(train, config)
        return train, everyone.select(apart)
    train = _open(config, data.train, data.draw_seed)
    _require_unmoved(train, config)
    test = _open(config, data.test, config.eval.seed, test=True)
    sources.require_disjoint(train, test)
    return train, test


def set_validation_apart(
    config: Config, train: Source, test: Source
) -> tuple[Source, Source | None]:
    """Returns the scans to train on, and those to validate on if the run validates.

    Args:
      config: `train.validate_every` asks for validation; `data.validation` names its
        scans. If it is empty, people are taken from `train`, or, if
        `train.validation_share` is set, points of its scans.
      train: training scans.
      test: test scans.

    Raises:
      InputError: scans cannot be used, `train` has nobody to spare, or the validation
        scans share a person with others.
    """
    data = config.data
    if not config.train.validate_every:
        return train, None
    if config.train.validation_share:
        return train, train
    if data.validation:
        validation = _open(config, data.validation, data.draw_seed)
        sources.require_disjoint(train, validation, "validation")
        sources.require_disjoint(test, validation, "validation", "test")
        return train, validation
    if len(train.subjects) < 2:
        raise InputError(
            f"config.train.validate_every needs people to validate on, but the "
            f"training scans have only {train.subjects[0]}; name scans of others with "
            "--config.data.validation, or set --config.train.validate_every=0"
            f"{_OWN_POINTS if config.mask.measured else ''}"
        )
    kept, apart = sources.split_subjects(
        train.subjects, 1 - data.validation_fraction, data.split_seed
    )
    return train.select(kept), train.select(apart)


def open_test_source(config: Config) -> Source:
    """Opens the test scans alone; reads training scans only if `test` is empty."""
    if not config.data.test:
        return open_sources(config)[1]
    return _open(config, config.data.test, config.eval.seed, test=True)


def _open(config: Config, paths: str, seed: int, *, test: bool = False) -> Source:
    if not paths:
        raise InputError(
            "config.data.train is empty; name a folder or file of scans, such as "
            "--config.data.train=/data/train, or the bundled demo:train"
        )
    undersampled = config.mask.measured and not test
    selection = config.data.selection(seed)
    source = sources.open_source(paths, selection, undersampled=undersampled)
    _require_coils(source, config, undersampled)
    if config.data.native:
        _require_grids(source, config)
    return source


def _require_coils(source: Source, config: Config, undersampled: bool) -> None:
    """Raises InputError if the coils of a scan do not suit the config."""
    for volume in {scan.name: scan.volume for scan, _ in source.entries}.values():
        volumes.require_coils(volume, config.data.coils.count)
        if undersampled and volume.coils < config.data.coils.count:
            raise InputError(
                f"{volume.path}: holds k-space of one coil, and coils can be simulated "
                "from a fully sampled scan only. Set --config.data.coils.count=1."
            )


def _require_unmoved(train: Source, config: Config) -> None:
    """Raises InputError if augmentation would change measured scans of coils."""
    measured = [scan.volume for scan, _ in train.entries if scan.volume.coils > 1]
    if measured and transforms.moves(config.data.augment):
        raise InputError(
            f"{measured[0].path}: holds k-space of {measured[0].coils} coils, whose "
            "maps would not follow flips, rotation, scaling or a change of intensity. "
            "To train on it, leave config.data.augment at its defaults."
        )


def _require_grids(source: Source, config: Config) -> None:
    """Raises InputError if a scan's size suits neither network nor undersampling."""
    sampler = None if config.mask.measured else open_sampler(config)
    for scan in {scan.name: scan for scan, _ in source.entries}.values():
        shape = native.grid_of(scan.volume).shape
        try:
            if sampler:
                sampler.at(shape)
            config.model.resized(config.data.size, shape).require_size(shape)
        except InputError as error:
            raise InputError(
                f"{scan.volume.path}: its k-space of {shape[0]} x {shape[1]} cannot be "
                f"used: {error}"
            ) from None


def open_sampler(config: Config) -> Patterns:
    """Returns the undersampling of a run, with its bank of masks if it has one.

    Raises:
      InputError: settings that no mask or trajectory can meet, an unreadable bank, or
        masks that the scans themselves have (`sampler_of`).
    """
    if config.mask.off_grid:
        return trajectory_sampling.sampler(config.mask, config.data.size)
    bank = None
    if config.mask.measured:
        raise InputError(
            "config.mask.kind='measured' draws no masks: it is for training on scans "
            "undersampled at the scanner. Reconstruct such scans with kst-reconstruct. "
            "To score a network on fully sampled ones, name them in "
            "--config.data.test, and set another --config.mask.kind."
        )
    if config.mask.kind == "bank":
        if not config.mask.bank:
            raise InputError("config.mask.kind='bank' needs config.mask.bank, a .npy")
        bank = read_mask_bank(config.mask.bank)
    return sampling.sampler(config.mask, config.data.size, bank)


def bank_checksum(config: Config) -> dict[str, str]:
    """Returns the name of a run's bank of masks and its SHA-256; empty without one."""
    if not config.mask.bank:
        return {}
    path = Path(config.mask.bank).expanduser()
    return {path.name: files.sha256_of(path)}


def sampler_of(source: Source, config: Config, *, validation: bool = False) -> Patterns:
    """Returns the undersampling of a run for its training or validation scans.

    Raises:
      InputError: as `open_sampler`, or masks of the scans cannot be used, or leave
        nothing to compare with.
    """
    if not config.mask.measured:
        return open_sampler(config)
    train, found = config.train, measured.sampler_of(source, config)
    if train.validation_share:
        name = "config.train.validation_share"
        measured.require_parts(found, train.validation_share, name)
        if validation:
            return found
        found = measured.training_part(found, config)
    measured.require_parts(found, train.held_out, "config.train.held_out")
    return found


def require_parts(config: Config) -> None:
    """Raises InputError for masks that no scan can be split by; opens no scan."""
    if config.mask.measured:
        return
    require_setting(
        config.train.validation_share == 0,
        "train.validation_share",
        config.train.validation_share,
        "0 unless mask.kind='measured'",
    )
    splits.splitter_of(config, open_sampler(config))


def fields_of_view(source: Source, config: Config) -> list[tuple[float, float]]:
    """Lists the heights and widths in mm of the images that networks see.

    Scans whose files do not tell the size of a pixel are left out.
    """
    data, found = config.data, set()
    crop = data.crop[0] or data.size[0], data.crop[1] or data.size[1]
    for volume in {scan.name: scan.volume for scan, _ in source.entries}.values():
        if volume.pixel:
            shape = native.grid_of(volume).shape if data.native else crop
            height, width = (
                round(n * mm) for n, mm in zip(shape, volume.pixel, strict=True)
            )
            found.add((height, width))
    return sorted(found)
