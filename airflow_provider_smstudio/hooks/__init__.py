"""Hooks of the SageMaker Studio provider."""
