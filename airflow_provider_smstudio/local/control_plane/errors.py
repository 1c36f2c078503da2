"""The errors that the control plane answers with."""

from __future__ import annotations


class ServiceError(Exception):
    """An answer with HTTP status 400; ``code`` is what boto3 shows as the error's code."""

    code = "InternalFailure"


class ResourceNotFoundError(ServiceError):
    """No such domain, user profile, space or app."""

    code = "ResourceNotFound"


class ResourceInUseError(ServiceError):
    """The app exists already, or is being deleted."""

    code = "ResourceInUse"


class ResourceLimitExceededError(ServiceError):
    """A quota of the account does not allow it."""

    code = "ResourceLimitExceeded"


class AccessDeniedError(ServiceError):
    """The caller's role lacks a permission."""

    code = "AccessDeniedException"


class ValidationError(ServiceError):
    """The request breaks a rule; not modelled in the API, so a plain ClientError in boto3."""

    code = "ValidationException"
