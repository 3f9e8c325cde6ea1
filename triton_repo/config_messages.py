"""Triton's own messages of a config.pbtxt: tritonclient's module, without the client around it.

Importing it by its name runs its package, which loads grpc, numpy and ml_dtypes: half of the time
that `serve` and `check` take to begin. The module itself needs protobuf alone.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_PACKAGE: Final = "tritonclient.grpc"
_NAME: Final = f"{_PACKAGE}.model_config_pb2"


def _load() -> ModuleType:
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    path = Path(package.submodule_search_locations[0], "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {_NAME!r}", name=_NAME)
    module = importlib.util.module_from_spec(spec)
    # Under its own name, so that the client, where it is loaded later, has the same classes.
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


model_config_pb2: Final[Any] = _load()
