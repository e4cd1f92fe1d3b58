"""Reconstructs scans that were undersampled at the scanner."""
