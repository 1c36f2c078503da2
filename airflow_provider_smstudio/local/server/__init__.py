"""The Jupyter servers behind the gateway, and the apps that they belong to."""
