"""The Jupyter server: login, REST API, kernel websockets, and the work on the server beside a run."""
