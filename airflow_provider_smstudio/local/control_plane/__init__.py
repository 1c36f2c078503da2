"""The part of SageMaker's API that Studio needs."""
