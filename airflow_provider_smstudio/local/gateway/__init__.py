"""The gateway, which is the host of a Studio app: login, loading page and forwarding to the Jupyter server."""
