"""The server's machine: memory, disks, versions."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter

from merlina.api.services import ServicesDep
from merlina.domain.units import MIB
from merlina.hardware.host import available_memory, disk_space, total_memory
from merlina.schemas.system import Disk, Machine
from merlina.version import current

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "datasets")

router = APIRouter(tags=["general"])


@router.get("/system")
def system(services: ServicesDep) -> Machine:
    """Return memory, the disks of data and models, and the versions of the training libraries."""
    folders = {"data": services.settings.data_dir, "models": services.settings.models_dir}
    spaces = {name: (path, *disk_space(path)) for name, path in folders.items()}
    return Machine(
        memory_total_mb=total_memory() // MIB,
        memory_available_mb=available_memory() // MIB,
        disks=[
            Disk(name=name, path=str(path), total_mb=total // MIB, free_mb=free // MIB)
            for name, (path, total, free) in spaces.items()
        ],
        versions={"python": platform.python_version(), "merlina": current().number, **_versions()},
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
