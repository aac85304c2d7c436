"""The libraries that make plans, where they are installed."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args

from engines.errors import PlanError
from engines.plans.builder import PlanBuilder
from engines.plans.onnx_builder import OnnxBuilder
from engines.plans.rtx_builder import RTXBuilder
from engines.plans.tensorrt_builder import Card, TensorRTBuilder

LibraryName = Literal["tensorrt-rtx", "tensorrt", "onnxruntime"]

LIBRARIES: tuple[LibraryName, ...] = get_args(LibraryName)


class _Package(NamedTuple):
    """The module of a library, the package that brings it, and the extra that brings that."""

    module: str
    package: str
    extra: str


PACKAGES: dict[LibraryName, _Package] = {
    "tensorrt-rtx": _Package("tensorrt_rtx", "tensorrt-rtx-cu13", "plans"),
    "tensorrt": _Package("tensorrt", "tensorrt-cu13", "tensorrt"),
    "onnxruntime": _Package("onnxruntime", "onnxruntime", "onnx"),
}


def plan_builder(library: LibraryName) -> PlanBuilder:
    """What builds with `library`. Raises PlanError if it is not installed, or needs a card that is not here."""
    module, license = plan_module(library), _license(PACKAGES[library].package)
    match library:
        case "tensorrt-rtx":
            return RTXBuilder(module, license)
        case "tensorrt":
            return TensorRTBuilder(module, license, Card.here())
        case "onnxruntime":
            return OnnxBuilder(license)


def plan_module(library: LibraryName) -> Any:
    """The module that builds and runs plans of `library`. Raises PlanError if it is not installed."""
    package = PACKAGES[library]
    if find_spec(package.module) is None:
        raise PlanError(f"{library} is not installed, which builds plans: pip install 'longtake[{package.extra}]'")
    try:
        return import_module(package.module)
    except ImportError as error:
        raise PlanError(f"{library} is installed and cannot be loaded: {error}") from error


def _license(package: str) -> str:
    try:
        found = metadata(package).json
    except PackageNotFoundError:
        # It came with the system, or in a package of another name.
        return "not stated"
    return str(found.get("license_expression") or found.get("license") or "not stated")
