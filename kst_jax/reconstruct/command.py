r"""Reconstructs scans that were undersampled at the scanner.

    kst-reconstruct runs/knee /data/singlecoil_test out

RUN is the folder of a run, of released weights (weights/uniform1d_5x) or of a
converted checkpoint; or `sense` for CG-SENSE, which needs no training and takes scans
of several coils. SCANS are files of k-space: fastMRI's .h5, with the `mask` of its test
files, ISMRMRD's .h5 or .mrd, BART's .cfl, or .npy; a folder, a file, a pattern, or
several with commas.
The command writes to OUT

    NAME.h5             `reconstruction`, float32 magnitudes (slices, H, W), in the
                        units of the scan, as fastMRI expects them
    reconstruct.json    run, step, scans, their accelerations, seconds

or NAME.nii with --format=nifti, or a picture NAME.png with --format=png.

The mask comes from the file; in a file without one, zeros were not measured. The
command crops an oversampled readout, and crops images to the matrix in the file's
header. It warns of scans that differ from the network's training scans. To try a
network on a fully sampled scan, undersample it:

    kst-reconstruct runs/knee scan.h5 out --acceleration=4

Scans that were measured off the grid, along spokes or spirals, need a network that was
trained so (mask.kind), or `sense`. ISMRMRD files hold their trajectory; for BART's,
name it:

    kst-reconstruct sense kspace.cfl out --trajectory=trajectory.cfl

To know how far off each pixel may be, give the folder of an evaluation that calibrates
the network (docs/uncertainty.md); OUT then also has standard deviations in the units of
the scan, beside the images, and a picture of them, NAME_deviation.png:

    kst-reconstruct runs/knee scans out --uncertainty=runs/knee/calibration

The same command resumes an interrupted reconstruction.
"""

from pathlib import Path

from kst_jax.data.off_grid import TrajectoryOptions
from kst_jax.data.readers.npy import memory_map
from kst_jax.data.trajectory_units import UNITS
from kst_jax.errors import InputError
from kst_jax.programs import cli
from kst_jax.programs.arguments import Parser
from kst_jax.reconstruct.inputs import Undersampling
from kst_jax.reconstruct.outputs import FORMATS
from kst_jax.reconstruct.runner import Options, reconstruct


def _main() -> None:
    parser = Parser("kst-reconstruct", __doc__)
    add = parser.add_argument
    add(
        "run",
        help="folder of a run, of released weights or of a converted checkpoint; or "
        "sense, for CG-SENSE",
    )
    add("scans", help="undersampled k-space: a folder, a file, a pattern, or several")
    add("out", help="folder to write")
    add(
        "--format",
        choices=FORMATS,
        default="h5",
        help="format of the files in OUT (h5)",
    )
    add("--complex", action="store_true", help="write the phase too (h5, nifti)")
    add("--mask", metavar="FILE.npy", help="mask (W,) or (H, W) for all scans")
    add(
        "--acceleration",
        type=float,
        default=0.0,
        help="undersample fully sampled scans by the network's pattern, for a try",
    )
    add(
        "--trajectory",
        metavar="FILE",
        help="trajectory of BART's k-space off the grid: a .cfl (3, samples, readouts) "
        "or a .npy (readouts, samples, 2), in units of 1 / field of view",
    )
    add(
        "--trajectory_units",
        choices=UNITS,
        default="",
        metavar="UNITS",
        help="units of ISMRMRD's trajectories, if they are not recognised: "
        + ", ".join(UNITS),
    )
    add(
        "--uncertainty",
        metavar="FOLDER",
        help="write standard deviations, calibrated by the evaluation in this folder",
    )
    add(
        "--checkpoint",
        choices=("latest", "best"),
        default="latest",
        help="which checkpoint of the run (latest)",
    )
    add(
        "--batch_size",
        type=int,
        default=4,
        help="slices per call, over all devices (4)",
    )
    args = parser.parse_args()
    if args.batch_size < 1:
        raise InputError(f"--batch_size={args.batch_size} must be at least 1")
    if args.acceleration and not args.acceleration > 1:
        raise InputError(f"--acceleration={args.acceleration} must be above 1")
    if args.complex and args.format == "png":
        raise InputError("--complex: a picture has no phase; use --format=h5 or nifti")
    mask = None if args.mask is None else memory_map(Path(args.mask))
    if args.uncertainty is not None and args.format == "png":
        raise InputError(
            "--uncertainty: a picture has no standard deviations in the units of the "
            "scan; use --format=h5 or nifti"
        )
    options = Options(
        args.format,
        args.complex,
        args.checkpoint,
        args.batch_size,
        Undersampling(mask, args.acceleration),
        TrajectoryOptions(
            None if args.trajectory is None else Path(args.trajectory),
            args.trajectory_units,
        ),
        None if args.uncertainty is None else Path(args.uncertainty),
    )
    cli.keep_programs()
    found = reconstruct(args.run, args.scans, args.out, options)
    count = sum(about["slices"] for about in found["scans"].values())
    print(f"{count} slices of {len(found['scans'])} scans written to {args.out}")


def main() -> None:
    """Command line."""
    cli.run(_main)
