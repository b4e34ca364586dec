"""Larder for Python."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("larder")
except PackageNotFoundError:  # the sources, not installed
    __version__ = "0.0.0"
