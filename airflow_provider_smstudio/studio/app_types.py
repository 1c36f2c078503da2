"""The two kinds of Studio app that have a Jupyter server."""

from __future__ import annotations

JUPYTER_LAB = "JupyterLab"
"""AppType of a space's app: today's Studio."""
JUPYTER_SERVER = "JupyterServer"
"""AppType of Studio Classic's app."""

BASE_PATHS = {JUPYTER_LAB: "/jupyterlab/default", JUPYTER_SERVER: "/jupyter/default"}
"""Where each app serves Jupyter, below the host of the presigned URL."""
