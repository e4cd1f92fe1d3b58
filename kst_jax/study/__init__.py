"""Compares methods under one protocol."""
