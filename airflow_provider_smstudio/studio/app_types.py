"""The two types of Studio app with a Jupyter server, and the form of domain ids, space names and profile names."""

from __future__ import annotations

import re

JUPYTER_LAB = "JupyterLab"
"""The ``AppType`` of a space's app, in today's Studio."""
JUPYTER_SERVER = "JupyterServer"
"""The ``AppType`` of Studio Classic's app."""

BASE_PATHS = {JUPYTER_LAB: "/jupyterlab/default", JUPYTER_SERVER: "/jupyter/default"}
"""The path where each app serves Jupyter, on the host of the presigned URL."""

DOMAIN_ID = re.compile(r"d-(-*[a-z0-9]){1,61}")
"""A domain's id; at most 63 characters."""

NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
"""The name of a space or of a user profile; at most 63 characters."""
