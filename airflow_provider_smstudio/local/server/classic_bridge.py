"""The files through which this process and the Jupyter server of Studio Classic exchange data."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from airflow_provider_smstudio.local.faults.switches import Switches
from airflow_provider_smstudio.local.server.app_lifecycle import AppRecord
from airflow_provider_smstudio.local.server.classic_images import ClassicImage
from airflow_provider_smstudio.local.transport.http import fetch

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])

# Appended to the Jupyter server's configuration.
_CONFIG = """
import sys
sys.path.append({package_root!r})
from airflow_provider_smstudio.local.server.classic_kernels import configure
configure(c, {folder!r})
"""


class ClassicBridge:
    """Writes the data that the Classic server needs, and reads the data that it writes.

    :param folder: private folder for the exchanged files.
    """

    def __init__(self, folder: Path, region: str, images: Sequence[ClassicImage], switches: Switches) -> None:
        self._folder = folder
        self._region = region
        self._images = images
        self._switches = switches

    def prepare(self) -> str:
        """Write the files for a new server. Return the text that its configuration must contain."""
        self._folder.mkdir(exist_ok=True)
        (self._folder / "apps.json").unlink(missing_ok=True)
        settings = [image.settings(self._region) for image in self._images]
        (self._folder / "images.json").write_text(json.dumps(settings))
        self._write_switches()
        self._switches.watch(self._write_switches)
        return _CONFIG.format(package_root=_PACKAGE_ROOT, folder=str(self._folder))

    def _write_switches(self) -> None:
        # The file is written under another name and then moved, so that the server never reads half a file.
        new = self._folder / f"switches-{secrets.token_hex(4)}"
        new.write_text(json.dumps(asdict(self._switches)))
        new.replace(self._folder / "switches.json")

    def records(self, owner: str) -> list[AppRecord]:
        """Return the KernelGateway apps that the server has reported."""
        path = self._folder / "apps.json"
        if not path.exists():
            return []
        return [
            AppRecord(
                "KernelGateway",
                app["app_name"],
                "UserProfileName",
                owner,
                app["status"],
                app["created"],
                {"InstanceType": app["instance_type"], "SageMakerImageArn": app["environment_arn"]},
            )
            for app in json.loads(path.read_text())
        ]

    async def delete_app(self, port: int, base: str, name: str) -> None:
        """Delete a KernelGateway app, as the control plane does."""
        xsrf = secrets.token_hex(16)
        fields = [("Cookie", f"_xsrf={xsrf}"), ("X-XSRFToken", xsrf)]
        await fetch(port, "DELETE", f"{base}/sagemaker/api/apps/{name}", fields)
