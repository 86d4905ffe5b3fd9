"""The one thing vLLM's MooncakeConnector lacks on a machine without an accelerator. A gap of vLLM, not of
Mooncake in C.

The connector's worker asks `torch.accelerator.current_device_index()` when it is built, and torch raises where
it knows no accelerator; no setting of vLLM avoids the call. This file, named sitecustomize.py so that Python
imports it at start-up when its folder is on PYTHONPATH, makes that one function answer 0 there. Nothing else is
touched: neither vLLM's connector nor the transfer engine. On a machine with an accelerator the real answer is
returned.
"""

import importlib.machinery
import sys
from types import ModuleType


class _AcceleratorFinder:
    """Finds torch.accelerator once, with a loader that wraps current_device_index after the real module has run."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch.accelerator":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        exec_real = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            exec_real(module)
            real_index = module.current_device_index

            def current_device_index() -> int:
                try:
                    return real_index()
                except RuntimeError:
                    return 0

            module.current_device_index = current_device_index

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _AcceleratorFinder())
