"""The host that a Studio app answers on: login, loading page, and the way to the Jupyter server."""
