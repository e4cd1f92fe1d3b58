"""Reconstructs, scores, writes and draws test slices."""
