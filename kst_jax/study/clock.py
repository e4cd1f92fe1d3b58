"""A fair clock: the processor time of several methods' train steps, taken in turn.

Methods can be compared at equal time if each sees as many images as it trains on in
that time. The minutes of finished trainings do not tell, since other programs slow some
of them more than others. Here each round times one step of every method, so a slow
spell of the machine meets all of them, and processor time leaves out what other
programs take.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from tqdm import tqdm

from kst_jax import parallel
from kst_jax.benchmark import measuring
from kst_jax.study.protocol import Cell, Study, config_of


@dataclasses.dataclass
class _Timed:
    """A method's train step, its arguments, and the seconds that it took."""

    step: Callable[..., Any]
    state: Any
    batch: Any
    seconds: list[float]

    def once(self) -> None:
        """Takes one step, and notes its processor time."""
        started = time.process_time()
        # The step reuses the memory of the state that it takes.
        self.state, *_ = jax.block_until_ready(self.step(self.state, self.batch))
        self.seconds.append(time.process_time() - started)


def measure(study: Study, cells: Sequence[Cell], rounds: int) -> dict[str, list[float]]:
    """Times the train steps of cells, of the last training stage.

    Args:
      study: the study.
      cells: cells of one setting.
      rounds: timed steps of each cell, after one to warm up.

    Returns:
      Cell names to the processor seconds per image in each round.
    """
    compiling = tqdm(cells, "Compiling", unit="step", leave=None)
    timed = {cell: _prepared(study, cell) for cell in compiling}
    for _ in tqdm(range(rounds + 1), "Timing", unit="round", leave=None):
        for one in timed.values():
            one.once()
    sizes = {cell: config_of(study, cell).train.batch_size for cell in cells}
    return {
        cell.name: [seconds / sizes[cell] for seconds in one.seconds[1:]]
        for cell, one in timed.items()
    }


def _prepared(study: Study, cell: Cell) -> _Timed:
    config = config_of(study, cell)
    case = measuring.Case("train step", config, config.train.batch_size)
    mesh = measuring.mesh_of(case)
    step, state = measuring.program(case, mesh)
    batch = parallel.shard(measuring.example(config, case.batch), mesh)
    return _Timed(step.lower(state, batch).compile(), state, batch, [])


def table(seconds: dict[str, list[float]]) -> str:
    """Returns the seconds per image as a Markdown table.

    The last column compares each cell with the first one, round by round.
    """
    lines = [
        "| cell | processor s per image: median (min-max) | times the first |",
        "| --- | --- | --- |",
    ]
    first = next(iter(seconds.values()))
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, first, strict=True))
        spread = f"{min(taken):.3g}-{max(taken):.3g}"
        lines.append(
            f"| {name} | {statistics.median(taken):.3g} ({spread}) | {ratio:.2f} |"
        )
    return "\n".join(lines)
