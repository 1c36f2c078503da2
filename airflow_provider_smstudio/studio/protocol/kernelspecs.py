"""Choose the kernel for a notebook among the kernelspecs of the server. No I/O.

Studio Classic names a kernel with its image, such as
``python3__SAGEMAKER_INTERNAL__arn:aws:sagemaker:REGION:ACCOUNT:image/NAME``. The account depends on the region.
In a space a kernel has its plain name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_smstudio.studio.errors import KernelNotFoundError

SEPARATOR = "__SAGEMAKER_INTERNAL__"
"""Separates the kernel from the image in the kernel names of Studio Classic."""


@dataclass(frozen=True)
class KernelSpecs:
    """The kernelspecs of a server.

    :ivar default: the name of its default kernel.
    :ivar specs: kernelspecs by name, as Jupyter's REST API returns them.
    """

    default: str | None
    specs: Mapping[str, Mapping[str, Any]]

    def spec(self, name: str) -> Mapping[str, Any]:
        """Return a kernelspec's own part: argv, language, display name, metadata."""
        return self.specs.get(name, {}).get("spec") or {}


@dataclass(frozen=True)
class KernelChoice:
    """A kernel to start.

    :ivar name: its name on the server.
    :ivar instance_type: the instance type for Studio Classic, or None; always None in spaces.
    :ivar note: a line for the log if another name was chosen; None if the name is unchanged.
    """

    name: str
    instance_type: str | None
    note: str | None


def choose(
    specs: KernelSpecs,
    metadata: Mapping[str, Any],
    *,
    kernel_name: str | None = None,
    instance_type: str | None = None,
    classic: bool = False,
) -> KernelChoice:
    """Choose the kernel for a notebook.

    :param specs: the kernelspecs of the server.
    :param metadata: the notebook's metadata.
    :param kernel_name: the kernel to use. Default: the notebook's own kernel, else the server's default kernel.
    :param instance_type: the instance type to use, only in Studio Classic. Default: the notebook's, else the
        kernelspec's.
    :param classic: whether the server is Studio Classic's.
    :raises KernelNotFoundError: when no kernel fits; the message lists the kernels of the server.
    """
    kernelspec = metadata.get("kernelspec")
    from_notebook = kernelspec.get("name") if isinstance(kernelspec, Mapping) else None
    if not isinstance(from_notebook, str):
        from_notebook = None
    wanted = kernel_name or from_notebook or specs.default or ""
    name, note = _match(specs, wanted, classic)
    if not classic:
        return KernelChoice(name, None, note)
    spec = specs.spec(name)
    of_spec = spec.get("instance_type") or (spec.get("metadata") or {}).get("instance_type")
    chosen = instance_type or metadata.get("instance_type") or of_spec
    return KernelChoice(name, str(chosen) if chosen else None, note)


def _match(specs: KernelSpecs, wanted: str, classic: bool) -> tuple[str, str | None]:
    if wanted in specs.specs:
        return wanted, None
    kernel, _, image = wanted.partition(SEPARATOR)
    if not classic:
        if image and kernel in specs.specs:
            return kernel, f"the notebook names the Classic kernel {wanted!r}; {kernel!r} runs it here"
        raise _not_found(specs, wanted)
    fitting = [
        name
        for name in specs.specs
        if name.partition(SEPARATOR)[0] == kernel and (not image or _image(name) == _image(wanted))
    ]
    if len(fitting) == 1:
        why = "has the same image" if image else "is the only one of that name"
        return fitting[0], f"the kernel {wanted!r} is not here; {fitting[0]!r} {why}"
    raise _not_found(specs, wanted, fitting)


def _image(name: str) -> str:
    """Return the image's name without its region and account: ``image/NAME``, with alias or version."""
    arn = name.partition(SEPARATOR)[2]
    return arn.split(":", 5)[-1] if arn.startswith("arn:") else arn


def _not_found(specs: KernelSpecs, wanted: str, fitting: list[str] | None = None) -> KernelNotFoundError:
    available = sorted(specs.specs)
    if fitting:
        text = f"several kernels fit {wanted!r}: {', '.join(sorted(fitting))}"
    elif wanted:
        text = f"there is no kernel {wanted!r} on this Studio app; it has {', '.join(available) or 'none'}"
    else:
        text = f"the notebook names no kernel; the Studio app has {', '.join(available) or 'none'}"
    return KernelNotFoundError(f"{text}. Name one with kernel_name", kernel_name=wanted, available=available)
