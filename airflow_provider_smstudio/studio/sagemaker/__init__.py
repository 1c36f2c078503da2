"""SageMaker's API: the app's state, and how an app is started and stopped."""
