"""The SageMaker API: the app's state, and the start and stop of an app."""
