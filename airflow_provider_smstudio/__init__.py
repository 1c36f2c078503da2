"""Run SageMaker Studio notebooks from Apache Airflow, cell by cell, on the user's own Studio."""

__version__ = "0.1.0"
