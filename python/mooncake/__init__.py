"""Mooncake in C: modules with the names, arguments and results of upstream Mooncake's.

What this build does not have yet raises ImportError when it is imported.
"""

from pkgutil import extend_path

from mooncake._version import version as __version__

# Other distributions may add modules below `mooncake`, as upstream's own add-ons do.
__path__ = extend_path(__path__, __name__)

__all__ = ["__version__"]
