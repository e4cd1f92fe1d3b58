"""Studies: methods compared under one protocol, by `kst-study`."""
