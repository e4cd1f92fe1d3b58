"""From files of MR scans to batches of masked k-space tokens."""
