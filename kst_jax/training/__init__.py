"""The training of a network (paper section 3.2)."""
