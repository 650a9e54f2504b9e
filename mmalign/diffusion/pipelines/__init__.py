"""Pipelines of diffusers taken apart, one file each; `mmalign.diffusion.families` lists them."""
