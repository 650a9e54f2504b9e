"""Diffusion and flow: pictures drawn by denoising, through diffusers' own pipelines."""

from mmalign.diffusion.policy import DiffusionPolicy, FlowPolicy

__all__ = ["DiffusionPolicy", "FlowPolicy"]
