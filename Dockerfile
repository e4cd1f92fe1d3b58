# The commands kst-train, kst-eval and the others, on the CPU:
#
#     docker build --tag kst_jax .
#     docker run --rm --volume "$PWD":/work kst_jax kst-train --config=demo --workdir=runs/demo
#
# On an NVIDIA GPU, with NVIDIA's container toolkit on the host, which brings the driver:
#
#     docker build --tag kst_jax --build-arg EXTRA=cuda13 .
#     docker run --rm --gpus all --volume "$PWD":/work kst_jax kst-train ...
FROM python:3.13-slim

# Of the package's extras: cuda12, cuda13, tpu, or none for the CPU.
ARG EXTRA=""

COPY . /source
RUN pip install --no-cache-dir "/source${EXTRA:+[$EXTRA]}" && rm -r /source

WORKDIR /work
CMD ["kst-train", "--help"]
