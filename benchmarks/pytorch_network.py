r"""Times our network beside the same network in PyTorch, call by call in turn.

PyTorch needs an environment of its own, and Linux:

    python3 -m venv .venv-torch
    .venv-torch/bin/pip install torch numpy
    .venv/bin/python -m benchmarks.pytorch_network --check \
        --torch-python=.venv-torch/bin/python
    .venv/bin/python -m benchmarks.pytorch_network \
        --torch-python=.venv-torch/bin/python

With --check it copies our parameters to PyTorch, compares images, loss and gradients,
and fails unless both are the same network. Otherwise it prints a Markdown table of
forward passes and train steps (AdamW, the last stage's loss), one slice at a time,
Gaussian 2D sampling at 5x. PyTorch runs `benchmarks/kst_pytorch.py` as it is, not
compiled, with autocast for bfloat16.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import turns
from benchmarks.turns import Side

NETWORKS = "narrow,paper"  # `side_jax.NETWORKS` describes them; there is "tiny" as well
WORK = "forward,train step"
PRECISIONS = "float32,bfloat16"
LARGEST = 1e-4  # relative difference that the order of float32 sums may make
HEAD = (
    "network | what | dtype | ours: s, median (min-max) | PyTorch | PyTorch over ours: "
    "medians | minima | ours: CPU s, median (min-max) | PyTorch | PyTorch over ours: "
    "minima | ours: peak GB | PyTorch"
)


@contextmanager
def sides(network: str, what: str, dtype: str, python: str) -> Iterator[list[Side]]:
    """Starts both sides, first ours, which writes the parameters of the other."""
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "benchmarks.side_jax"]
        ours += [network, what, dtype, folder]
        other = [python, "-m", "benchmarks.side_pytorch", folder]
        with turns.started([ours, other]) as both:
            yield both


def check(networks: list[str], python: str) -> str:
    """Returns a table of relative differences; ends the program if one is too large."""
    rows: list[str] = []
    found: dict[str, float] = {}
    worst = 0.0
    for network in networks:
        with sides(network, "check", "float32", python) as (_, other):
            found = other.about["differences"]
        worst = max(worst, *found.values())
        cells = (f"{x:.1e}" for x in found.values())
        rows.append(f"| {' | '.join([network, *cells])} |")
    if not worst <= LARGEST:
        sys.exit(f"{rows}\nerror: results differ by more than {LARGEST}")
    return "\n".join([turns.head(" | ".join(["network", *found])), *rows])


def compare(network: str, what: str, dtype: str, given: argparse.Namespace) -> str:
    """Times a case and returns its row of the table."""
    with sides(network, what, dtype, given.torch_python) as both:
        for _ in range(given.calls):
            for side in both:
                side.call()
    ours, other = both
    median = statistics.median
    cells = [
        *(turns.spread(side.seconds) for side in both),
        f"{median(other.seconds) / median(ours.seconds):.2f}",
        f"{min(other.seconds) / min(ours.seconds):.2f}",
        *(turns.spread(side.cpu_seconds) for side in both),
        f"{min(other.cpu_seconds) / min(ours.cpu_seconds):.2f}",
        *(f"{side.peak_bytes / 1e9:.2f}" for side in both),
    ]
    return " | ".join([network, what, dtype, *cells])


def main() -> None:
    """Command line."""
    options = turns.parser(__doc__, calls=5)
    add = options.add_argument
    add("--check", action="store_true", help="compare results instead of times")
    add("--networks", default=NETWORKS, help=f"which sizes ({NETWORKS}; tiny)")
    add("--what", default=WORK, help=f"what to time ({WORK})")
    add("--precision", default=PRECISIONS, help=f"of products ({PRECISIONS})")
    given = options.parse_args()
    turns.use_cores(given.threads)
    networks = given.networks.split(",")
    if given.check:
        print(check(networks, given.torch_python))
        return
    choices = networks, given.what.split(","), given.precision.split(",")
    print(turns.head(HEAD))
    for case in itertools.product(*choices):
        print(f"| {compare(*case, given)} |", flush=True)


if __name__ == "__main__":
    main()
