"""Schedulers of diffusers as noise processes with a density."""

from __future__ import annotations

from typing import Any, get_args

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from mmalign.diffusion.moves import Prediction
from mmalign.diffusion.processes import Diffusion, Flow, Spacing


def use_ddim(pipe: Any) -> Diffusion:
    """Give a pipeline DDIM with the noise schedule it has, and return its process.

    DDIM is the scheduler whose moves have a density. One that never clips (Euler, DPM-Solver) says
    nothing about clipping, which DDIM's own default would then switch on.

    Raises:
        ValueError: As `diffusion_process` does.
    """
    config = dict(pipe.scheduler.config)
    pipe.scheduler = DDIMScheduler.from_config({"clip_sample": False, **config})
    return diffusion_process(pipe.scheduler)


def diffusion_process(scheduler: DDIMScheduler) -> Diffusion:
    """The process of a DDIM scheduler.

    Raises:
        ValueError: It says of no known kind what the network predicts; or it clips predictions, or
            starts from a level without any signal while the network predicts noise: neither has a
            move with a density.
    """
    config = scheduler.config
    known = get_args(Prediction)
    if config.prediction_type not in known:
        raise ValueError(
            f"prediction_type {config.prediction_type!r} of the scheduler is not one of "
            f"{', '.join(known)}; mend scheduler/scheduler_config.json, or use `type: flow` if the "
            "network predicts a velocity"
        )
    if config.clip_sample or config.thresholding:
        raise ValueError("the scheduler clips the latent; switch clip_sample and thresholding off")
    alphas = scheduler.alphas_cumprod.float().cpu()
    if config.prediction_type == "epsilon" and float(alphas.min()) <= 0:
        raise ValueError(
            "the scheduler's last level holds no signal (rescale_betas_zero_snr), from which a "
            "network that predicts noise cannot start; use prediction_type v_prediction"
        )
    return Diffusion(
        scheduler=scheduler,
        alphas=alphas,
        final_alpha=float(torch.as_tensor(scheduler.final_alpha_cumprod)),
        prediction_type=config.prediction_type,
    )


def use_euler(pipe: Any) -> None:
    """Give a pipeline of a flow the Euler scheduler, with the shift of the solver it has.

    Multistep solvers (DPM-Solver, UniPC) mix several answers of the network into a move, which
    then has no density of its own.

    Raises:
        ValueError: The solver is not one of a flow.
    """
    if isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
        return
    config = dict(pipe.scheduler.config)
    if config.get("prediction_type") != "flow_prediction" or not config.get("use_flow_sigmas"):
        raise ValueError(
            f"{type(pipe.scheduler).__name__} is not set up for a flow: its config needs "
            "prediction_type flow_prediction and use_flow_sigmas"
        )
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=config["num_train_timesteps"], shift=config["flow_shift"]
    )


def flow_process(scheduler: Any, *, tokens: int, spacing: Spacing = "scheduler") -> Flow:
    """The process of a flow-matching Euler scheduler.

    Under dynamic shifting the shift is ``mu = m tokens + b``, the line through (base_image_seq_len,
    base_shift) and (max_image_seq_len, max_shift) of the scheduler's config, as in the pipelines.

    Args:
        scheduler: The pipeline's.
        tokens: Patches of a picture, which dynamic shifting goes by.
        spacing: See `mmalign.diffusion.processes.Flow`.

    Raises:
        ValueError: Another scheduler, or a setting under which its steps are not fixed levels.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"a flow needs FlowMatchEulerDiscreteScheduler; this pipeline has "
            f"{type(scheduler).__name__}"
        )
    config = scheduler.config
    if config.invert_sigmas or config.stochastic_sampling:
        raise ValueError(
            "schedulers with invert_sigmas or stochastic_sampling are not supported; switch them "
            "off in the scheduler's config"
        )
    mu = None
    if config.use_dynamic_shifting:
        span = config.max_image_seq_len - config.base_image_seq_len
        slope = (config.max_shift - config.base_shift) / span
        mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
    return Flow(
        scheduler=scheduler,
        num_train_timesteps=int(config.num_train_timesteps),
        mu=mu,
        spacing=spacing,
    )
