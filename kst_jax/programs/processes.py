"""Worker processes that start fresh and never outlive the program."""

import concurrent.futures
import multiprocessing
import os
import threading


def pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    """A pool of fresh processes, which end with this one, even where it is killed."""
    return concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=end_with_parent
    )


def end_with_parent() -> None:
    """Ends this worker process as soon as the one that started it has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # pools are not of the first process

    def wait() -> None:
        parent.join()
        os._exit(1)

    # Workers wait for work, and would do so for ever.
    threading.Thread(target=wait, daemon=True).start()
