"""The two kinds of Studio app that have a Jupyter server, and how AWS names what they belong to."""

from __future__ import annotations

import re

JUPYTER_LAB = "JupyterLab"
"""AppType of a space's app: today's Studio."""
JUPYTER_SERVER = "JupyterServer"
"""AppType of Studio Classic's app."""

BASE_PATHS = {JUPYTER_LAB: "/jupyterlab/default", JUPYTER_SERVER: "/jupyter/default"}
"""Where each app serves Jupyter, below the host of the presigned URL."""

DOMAIN_ID = re.compile(r"d-(-*[a-z0-9]){1,61}")
"""A domain's ID; at most 63 characters."""

NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
"""The name of a space or of a user profile; at most 63 characters."""
