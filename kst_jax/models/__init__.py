"""Reconstruction networks as pure Flax modules.

Names give the dimensions, one letter per axis:

    B  batch            N  sampled tokens        D  width
    H  image rows       M  queries               K  heads
    W  image columns    L  low-resolution tokens S  layers

so `q_BxMxD` is an array of shape (batch, queries, width); a last axis of 2 holds real
and imaginary parts.
"""
