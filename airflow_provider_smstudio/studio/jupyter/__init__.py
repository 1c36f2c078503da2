"""The Jupyter server: login, REST API, kernel websockets, and what is done there beside a run."""
