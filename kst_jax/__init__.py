"""The K-Space Transformer: MR images from undersampled k-space, in JAX and Flax."""

__version__ = "0.1.0"
