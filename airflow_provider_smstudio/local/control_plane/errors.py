"""The errors that the control plane returns."""

from __future__ import annotations


class ServiceError(Exception):
    """A response with HTTP status 400. boto3 shows ``code`` as the code of the error."""

    code = "InternalFailure"


class ResourceNotFoundError(ServiceError):
    """The domain, user profile, space or app does not exist."""

    code = "ResourceNotFound"


class ResourceInUseError(ServiceError):
    """The app already exists, or is being deleted."""

    code = "ResourceInUse"


class ResourceLimitExceededError(ServiceError):
    """A quota of the account does not allow it."""

    code = "ResourceLimitExceeded"


class AccessDeniedError(ServiceError):
    """The caller's role lacks a permission."""

    code = "AccessDeniedException"


class ValidationError(ServiceError):
    """The request breaks a rule. The API model does not define this error, so boto3 raises a plain ClientError."""

    code = "ValidationException"
