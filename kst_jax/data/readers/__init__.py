"""One file for each kind of scan."""
