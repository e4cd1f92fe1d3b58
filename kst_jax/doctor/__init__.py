"""What scans are and what is wrong with them, before a run stops at them."""
