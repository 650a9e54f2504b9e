"""mmalign: align generative models of every modality with preferences."""

from mmalign._version import __version__

__all__ = ["__version__"]
