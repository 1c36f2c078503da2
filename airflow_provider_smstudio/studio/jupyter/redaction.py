"""Keeps secrets out of logs.

A presigned URL is a login. The libraries that the client uses log it at debug level. urllib3 logs the request's
path, and botocore logs the answer that contains the URL. A filter on their loggers removes the token.
"""

from __future__ import annotations

import logging
import re

_TOKEN = re.compile(r"(auth\?token=|_xsrf=|[?&]token=)[^\s\"'&<>]+")
_LOGGERS = ("urllib3.connectionpool", "botocore.parsers", "botocore.endpoint", "botocore.httpsession")


def redact(text: str) -> str:
    """Return a text with the tokens in its URLs replaced by ``***``."""
    return _TOKEN.sub(r"\1***", text)


class _Redactor(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        redacted = redact(message)
        if redacted != message:
            record.msg, record.args = redacted, ()
        return True


_REDACTOR = _Redactor()


def protect_library_logs() -> None:
    """Install the filter. A second call changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_REDACTOR)
