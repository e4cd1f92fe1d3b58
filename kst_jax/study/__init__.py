"""Methods compared under one protocol."""
