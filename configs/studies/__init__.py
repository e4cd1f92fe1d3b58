"""Studies: `kst-study` compares methods under one protocol."""
