"""Mooncake in C: modules with the names, arguments and results of upstream Mooncake's.

What this build does not have yet raises ImportError when it is imported.
"""

import os
import sys

from mooncake._version import version as __version__

# Other distributions may add modules below `mooncake`, as upstream's own add-ons do. Where none can have, pkgutil, which
# takes longer to import than the engine, is left alone.
if sum(os.path.isdir(os.path.join(place, "mooncake")) or os.path.isfile(place) for place in sys.path) > 1:
    from pkgutil import extend_path

    __path__ = extend_path(__path__, __name__)

__all__ = ["__version__"]
