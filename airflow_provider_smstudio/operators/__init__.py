"""Operators of the SageMaker Studio provider."""
