"""Programs that take turns, so that a machine's drift meets all of them alike.

Each side is a process of its own, perhaps of another environment. While it is not its
turn it is stopped, so that its threads and workers use no core. This file needs nothing
but the standard library, since all environments import it.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def serve(call: Callable[[], Any], **about: Any) -> None:
    """Runs a side: tells that it is ready, then makes a call at each line of input.

    Args:
      call: the work to time; it returns when the work is done.
      **about: what the other end learns first, in `Side.about`.
    """
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        call()
        print(time.perf_counter() - started, peak_bytes(), flush=True)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    # Unlike getrusage, this forgets the size of the process that started this one.
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None  # Linux
    return 1024 * int(found[1])


class Side:
    """The other end of `serve`.

    Attributes:
      about: what the program told about itself.
      seconds: of each call.
      cpu_seconds: processor time of each call, workers included, to 0.01 s. Other
        programs on the same cores lengthen it less.
      peak_bytes: largest resident size after the latest call.
    """

    def __init__(self, command: Sequence[str]):
        """Starts a program, from the root of the clone, and waits until it is ready."""
        self._name = " ".join(command)
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group, to stop it with its workers
        )
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.peak_bytes = 0
        try:
            self.about = json.loads(self._answer())
            self._stop()
        except BaseException:  # Ctrl-C while the program starts
            self.close()
            raise

    def call(self) -> None:
        """Lets the program make one call."""
        assert self._process.stdin is not None
        before = self._cpu()
        self._signal(signal.SIGCONT)
        print(file=self._process.stdin, flush=True)
        seconds, peak = self._answer().split()
        self._stop()
        self.seconds.append(float(seconds))
        self.cpu_seconds.append(self._cpu() - before)
        self.peak_bytes = int(peak)

    def close(self) -> None:
        """Ends the program and its workers."""
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        sys.exit(f"error: {self._name} ended; its message is above")

    def _cpu(self) -> float:
        """Processor time of the program and its workers so far, in seconds."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # another process has ended
                fields = path.read_text().rpartition(") ")[2].split()
                if int(fields[2]) == self._process.pid:  # its group
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until it has stopped

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)


@contextlib.contextmanager
def started(commands: Sequence[Sequence[str]]) -> Iterator[list[Side]]:
    """Starts sides, one after the other, and ends them at last."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        sides = []
        for command in commands:
            sides.append(Side(command))
            stack.callback(sides[-1].close)
        yield sides


def parser(description: str | None, calls: int) -> argparse.ArgumentParser:
    """The options of every comparison."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add(
        "--torch-python",
        type=os.path.abspath,
        required=True,
        help="the other environment's Python",
    )
    add("--threads", type=int, default=1, help="cores of each side (1)")
    add("--calls", type=int, default=calls, help=f"timed calls of each ({calls})")
    return options


def use_cores(count: int) -> None:
    """Keeps this process, and those that it starts, to its first `count` cores.

    XLA takes as many threads; PyTorch's side asks for them.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        sys.exit(f"error: --threads={count}: this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[:count])


def spread(values: Sequence[float]) -> str:
    """The median, the least and the largest value, as text."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def head(titles: str) -> str:
    """The first two lines of a Markdown table; ` | ` separates the titles."""
    rule = " | ".join("---" for _ in titles.split(" | "))
    return f"| {titles} |\n| {rule} |"
