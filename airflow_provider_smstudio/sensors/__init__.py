"""Sensors of the SageMaker Studio provider."""
