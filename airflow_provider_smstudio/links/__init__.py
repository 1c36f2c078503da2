"""Extra links of the SageMaker Studio provider."""
