"""Triggers of the SageMaker Studio provider."""
