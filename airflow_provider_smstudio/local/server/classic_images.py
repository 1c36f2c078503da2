"""The accounts of images, and the images that a Classic domain offers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SEPARATOR = "__SAGEMAKER_INTERNAL__"

# From public tables: the account of the first-party images, and the account of SageMaker Distribution.
_ACCOUNTS = {
    "us-east-1": ("081325390199", "885854791233"),
    "us-east-2": ("429704687514", "137914896644"),
    "us-west-1": ("742091327244", "053634841547"),
    "us-west-2": ("236514542706", "542918446943"),
    "ap-northeast-1": ("102112518831", "010972774902"),
    "ap-south-1": ("394103062818", "245090515133"),
    "ap-southeast-1": ("492261229750", "022667117163"),
    "ap-southeast-2": ("452832661640", "648430277019"),
    "ca-central-1": ("310906938811", "481561238223"),
    "eu-central-1": ("936697816551", "545423591354"),
    "eu-north-1": ("243637512696", "175620155138"),
    "eu-west-1": ("470317259841", "819792524951"),
    "eu-west-2": ("712779665605", "021081402939"),
    "eu-west-3": ("615547856133", "856416204555"),
    "sa-east-1": ("782484402741", "567556641782"),
}
_OWN_ACCOUNT = "123456789012"


def distribution_arn(region: str) -> str:
    """Return the ARN of SageMaker Distribution's CPU image, the usual image of a space."""
    account = _ACCOUNTS.get(region, _ACCOUNTS["us-east-1"])[1]
    return f"arn:aws:sagemaker:{region}:{account}:image/sagemaker-distribution-cpu"


@dataclass(frozen=True)
class ClassicImage:
    """An image of a Classic domain with one kernel.

    :param resource: the end of its ARN: ``image/<name>`` for first-party images, ``image-version/<name>/<n>``
        for custom ones.
    :param display_name: the image's name in the user interface.
    :param custom: whether the image belongs to the domain's own account.
    :param instance_type: the instance type if the client requests none.
    """

    resource: str
    display_name: str
    kernel: str = "python3"
    kernel_display_name: str = "Python 3"
    description: str = ""
    gpu_optimized: bool = False
    custom: bool = False
    instance_type: str = "ml.t3.medium"

    def arn(self, region: str) -> str:
        """Return the image's ARN in a region."""
        account = _OWN_ACCOUNT if self.custom else _ACCOUNTS.get(region, _ACCOUNTS["us-east-1"])[0]
        return f"arn:aws:sagemaker:{region}:{account}:{self.resource}"

    def kernel_name(self, region: str) -> str:
        """Return the kernelspec's name in a region, as notebooks of Classic store it."""
        return f"{self.kernel}{SEPARATOR}{self.arn(region)}"

    def settings(self, region: str) -> dict[str, Any]:
        """Return the data about the image that the Classic server needs."""
        return {**asdict(self), "arn": self.arn(region), "name": self.kernel_name(region)}


CLASSIC_IMAGES = (
    ClassicImage(
        "image/datascience-1.0",
        "Data Science",
        description="Anaconda Individual Edition https://www.anaconda.com/distribution/",
    ),
    ClassicImage(
        "image/pytorch-1.8-gpu-py36",
        "PyTorch 1.8 Python 3.6 GPU Optimized",
        gpu_optimized=True,
        instance_type="ml.g4dn.xlarge",
    ),
    ClassicImage("image-version/team-image/3", "team-image/3", custom=True),
)
