"""Faults between a client and a Jupyter server."""
