"""MIA-DPO: pairs about several pictures from data about single ones (2410.17637)."""

from mmalign.vision.mia.builder import MIADPO

__all__ = ["MIADPO"]
