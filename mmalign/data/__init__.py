"""Data files: the columns people already have, checked row by row, and writing them."""

from mmalign.data.files import File
from mmalign.data.writing import write_preferences, write_samples

__all__ = ["File", "write_preferences", "write_samples"]
