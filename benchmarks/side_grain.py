"""Our side of `benchmarks.fastmri_loader`.

python -m benchmarks.side_grain FOLDER BATCHES THREADS
"""

import sys

from benchmarks import turns
from kst_jax.config_dict import from_dict
from kst_jax.configs.fastmri_knee_4x import get_config
from kst_jax.data import opening, pipeline, sources


def main() -> None:
    """Command line."""
    folder, batches, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    values = get_config()
    values.data.threads = threads
    config = from_dict(values)
    source, sampler = sources.open_source(folder), opening.open_sampler(config)
    stream = pipeline.training_batches(source, config, sampler)

    def call() -> None:
        for _ in range(batches):
            next(stream)

    call()  # fills what is prepared ahead
    turns.serve(call)


if __name__ == "__main__":
    main()
