"""SageMaker's API as far as Studio needs it."""
