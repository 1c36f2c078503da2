"""What can go wrong on the way to a Jupyter server."""
