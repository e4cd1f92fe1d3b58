"""Command lines, whole files, worker processes."""
