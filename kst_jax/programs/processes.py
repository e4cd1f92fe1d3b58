"""Worker processes that start fresh and never outlive the program."""

import concurrent.futures
import multiprocessing
import os
import threading


def pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    """Makes a pool of fresh processes, which end with this one even if it is killed."""
    return concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=end_with_parent
    )


def end_with_parent() -> None:
    """Ends this worker process as soon as its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # workers always have a parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    # Workers would wait for work for ever.
    threading.Thread(target=wait, daemon=True).start()
