"""Requests to stop a run: SIGTERM, as at pre-emption, and Ctrl-C."""

import os
import signal
import sys
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Holds requests to stop, in a `with` block, until a loop is ready for them.

    An exception in the middle of XLA's compiler would crash the process.

    A second Ctrl-C interrupts at once. Signals reach only the main thread; in any other
    thread nothing is held. Several processes must stop at the same step: after SIGTERM
    to any of them JAX agrees on one, while Ctrl-C interrupts them at once.
    """

    def __init__(self):
        self._request: signal.Signals | None = None
        self._asked = 0
        self._handlers = {}

    def __enter__(self) -> "Interruption":
        main = threading.current_thread() is threading.main_thread()
        if main and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        again = self._request == number == signal.SIGINT
        self._request = signal.Signals(number)
        if again:
            signal.default_int_handler(number, frame)
        told = f"\n{self._request.name}: saving and stopping soon"
        told += " (Ctrl-C again: at once)\n" if number == signal.SIGINT else "\n"
        os.write(2, told.encode())  # print fails when it interrupts another print

    def requested(self) -> bool:
        """Returns whether to stop now; every process must ask equally often."""
        self._asked += 1
        if multihost_utils.reached_preemption_sync_point(self._asked):
            self._request = signal.SIGTERM
        return self._request is not None

    def obey(self, message: str) -> None:
        """Ends the program with a message, if that was requested.

        Raises:
          SystemExit: with code 0, for SIGTERM.
          KeyboardInterrupt: for Ctrl-C.
        """
        if self._request is None:
            return
        print(message, file=sys.stderr)
        if self._request == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(0)
