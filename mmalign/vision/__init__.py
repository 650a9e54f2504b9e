"""Vision: models that read pictures and answer in text, and models that draw code by code."""

from mmalign.vision.ar_codes import CodeSampling
from mmalign.vision.ar_image import ARImageAdapter
from mmalign.vision.ar_policy import ARImagePolicy
from mmalign.vision.lvlm import LVLMAdapter
from mmalign.vision.lvlm_policy import LVLMPolicy

__all__ = ["ARImageAdapter", "ARImagePolicy", "CodeSampling", "LVLMAdapter", "LVLMPolicy"]
