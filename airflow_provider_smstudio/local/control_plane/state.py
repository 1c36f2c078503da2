"""The content of the local Studio: one domain with one user profile and, in new Studio, one space."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_smstudio.local.faults.switches import Switches
from airflow_provider_smstudio.local.gateway.gateway import Gateway
from airflow_provider_smstudio.local.gateway.login import Logins
from airflow_provider_smstudio.local.server.app_lifecycle import AppLifecycle, AppRecord

ACCOUNT = "123456789012"


@dataclass
class Domain:
    """All data behind the answers of the control plane.

    :param classic: True for a Classic domain, in which the user profile has a JupyterServer app and there is no
        space. False for a domain of new Studio, in which the space has a JupyterLab app.
    :param door: the gateway of the space, or of the Classic domain.
    :param web_ui: the gateway of Studio's web UI.
    :param kernel_apps: returns Classic's KernelGateway apps.
    """

    classic: bool
    region: str
    domain_id: str
    user_profile_name: str
    space_name: str
    switches: Switches
    logins: Logins
    slot: AppLifecycle
    door: Gateway
    web_ui: Gateway
    kernel_apps: Callable[[], list[AppRecord]]
    delete_kernel_app: Callable[[str], Any]
    created: float = field(default_factory=time.time)

    def arn(self, kind: str, *names: str) -> str:
        """Return an ARN of this account and region."""
        return f"arn:aws:sagemaker:{self.region}:{ACCOUNT}:{kind}/{'/'.join([self.domain_id, *names])}"

    def app_arn(self, record: AppRecord) -> str:
        """Return an app's ARN."""
        return self.arn("app", record.owner, record.app_type.lower(), record.app_name)

    def records(self) -> list[AppRecord]:
        """Return every app that the control plane knows."""
        own = [self.slot.record] if self.slot.record else []
        return own + self.kernel_apps()
