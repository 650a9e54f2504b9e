"""Denoising moves as a policy, against the loops people use: ``python -m benchmarks.diffusion_rl``.

A batch is sampled, judged, and trained on twice, one move of all rows in a forward. The rivals'
loops are re-hosted on this cell's weights, call by call:

* DDPO: ``scripts/train.py`` of kvablack/ddpo-pytorch at 18294d8;
* flow_grpo: ``scripts/train_sd3.py`` of yifan123/flow_grpo at 1f4ca40, with its KL.

Brought into line on both sides: the noise is prepared once, advantages are ``(r - mean) / (std +
0.0001)`` within a prompt, the ratio is clipped at 0.2 (at the published 0.0001 nothing would be
left to compare), AdamW has no weight decay, and a move's KL is of the Gaussian that was drawn from.
Both rivals sample and train with as many calls of the network as we do, so that what can be gained
is little: this cell shows that nothing is lost in the common loop either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import language, pictures
from benchmarks.harness import Cell, Settings, main
from benchmarks.measure import Clock, Measured

if TYPE_CHECKING:
    from mmalign.run import Run
    from mmalign.types import Output, Prompt

UPDATES = 2
CLIP = 0.2
NOISE_LEVEL = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Redness:
    """How red a picture is, coarse enough that rounding does not tell two sides apart."""

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """``[B]``, in tenths of a level of 0 to 255."""
        means = [np.asarray(output, dtype=np.float64).mean((0, 1)) for output in outputs]
        return torch.tensor([round(float(mean @ [2, -1, -1]), 1) for mean in means])


def run_of(settings: Settings, output: Path) -> Run:
    """The run, as a config would describe it."""
    from mmalign.data import File
    from mmalign.diffusion import DiffusionPolicy, FlowPolicy
    from mmalign.lora import LoRA
    from mmalign.objectives import GRPO
    from mmalign.references import LoRAOff
    from mmalign.run import Run, Training
    from mmalign.sources import Rollouts

    folder = Path(settings["folder"])
    given = folder / "lora"
    lora = LoRA(path=str(given)) if given.is_dir() else LoRA(
        rank=pictures.RANK, alpha=pictures.RANK, target_modules=pictures.LORA_TARGETS
    )  # fmt: skip
    common: dict[str, Any] = {
        "model": str(folder / "model"), "likelihood": "path", "steps": settings["moves"],
        "guidance_scale": settings["guidance"], "lora": lora,
    }  # fmt: skip
    policy = (
        FlowPolicy(**common, noise_level=NOISE_LEVEL)
        if settings["kind"] == "flow"
        else DiffusionPolicy(**common, eta=1.0)
    )
    beta = settings["beta"]
    return Run(
        policy=policy,
        objective=GRPO(epsilon=CLIP, beta=beta, kl="exact"),
        source=Rollouts(
            data=File(path=str(folder / "rows.jsonl")), reward=Redness(), shuffle=False,
            num_generations=settings["group"], batch_size=settings["prompts"],
        ),
        reference=LoRAOff() if beta else None,
        training=Training(
            steps=UPDATES * (settings["steps"] + 1), learning_rate=settings["rate"],
            updates_per_batch=UPDATES, steps_per_microbatch=1,
        ),
        output=str(output),
    )  # fmt: skip


def prepare(settings: Settings, folder: Path) -> None:
    """Weights, prompts, the LoRA both start from, and all noise."""
    from mmalign import rng

    make = pictures.flow if settings["kind"] == "flow" else pictures.diffusion
    make(settings).save_pretrained(folder / "model")
    words = torch.Generator().manual_seed(1)
    prompts = [
        language.text_of(torch.randint(2, pictures.VOCABULARY, (12,), generator=words).tolist())
        for _ in range(settings["prompts"])
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    run_of({**settings, "folder": str(folder)}, folder / "run").policy.load().save(folder / "lora")
    shape = (settings["group"], pictures.LATENT["channels"], settings["side"], settings["side"])
    noise = {}
    for epoch in range(settings["steps"] + 1):
        draws = [rng.generator(0, "rollout", epoch, row) for row in range(settings["prompts"])]
        for move in range(settings["moves"] + 1):
            rows = [torch.randn(shape, generator=draw) for draw in draws]
            noise[f"{epoch}.{move}"] = torch.cat(rows)
    save_file(noise, folder / "noise.safetensors")


def images(settings: Settings) -> float:
    """Pictures of a batch."""
    return float(settings["prompts"] * settings["group"])


def ours(settings: Settings) -> Measured:
    """Through the public API; a tick is a batch, with the loss of each of its updates."""
    trainer = run_of(settings, Path(settings["scratch"]) / "run").build()
    clock = Clock(units=images(settings), device=settings["device"])
    update, losses = trainer.update, []

    def ticking(batch: Any) -> dict[str, float]:
        metrics = update(batch)
        losses.append(metrics["loss"])
        if len(losses) % UPDATES == 0:
            clock.tick()
        return metrics

    trainer.update = ticking  # type: ignore[method-assign]
    trainer.train()
    clock.losses = losses
    return clock.measured()


class Loop:
    """What the rivals share: networks, optimizer, sampling, the clipped loss of a move."""

    def __init__(self, settings: Settings) -> None:
        from diffusers import DiffusionPipeline
        from peft import LoraConfig, set_peft_model_state_dict

        self.settings, self.folder = settings, Path(settings["folder"])
        flow = settings["kind"] == "flow"
        absent = ["text_encoder_3", "tokenizer_3"] if flow else ["safety_checker"]
        self.pipe: Any = DiffusionPipeline.from_pretrained(
            self.folder / "model", **dict.fromkeys(absent)
        )
        self.network: Any = self.pipe.transformer if flow else self.pipe.unet
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        self.network.add_adapter(
            LoraConfig(
                r=pictures.RANK,
                lora_alpha=pictures.RANK,
                target_modules=list(pictures.LORA_TARGETS),
            )
        )
        saved = load_file(self.folder / "lora" / "adapter_model.safetensors")
        tensors = {name.removeprefix("base_model.model."): t for name, t in saved.items()}
        set_peft_model_state_dict(self.network, tensors)
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings["rate"], betas=(0.9, 0.999), weight_decay=0.0
        )
        self.noise = load_file(self.folder / "noise.safetensors")
        self.prompts = [
            row["prompt"] for row in language.read_rows(settings) for _ in range(settings["group"])
        ]
        self.pipe.scheduler.set_timesteps(settings["moves"])
        with torch.no_grad():
            self.empty = self.embed([""])

    def embed(self, texts: list[str]) -> tuple[Tensor, ...]:
        """What conditions the network, of each text."""
        raise AssertionError

    def predict(self, latent: Tensor, time: Tensor, states: tuple[Tensor, ...]) -> Tensor:
        """The network's answer."""
        raise AssertionError

    def gaussian(self, answer: Tensor, move: int, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a move."""
        raise AssertionError

    def move(self, number: int, latent: Tensor, both: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Mean and deviation under guidance, both halves in one call."""
        time = self.pipe.scheduler.timesteps[number].expand(2 * len(latent))
        without, given = self.predict(torch.cat([latent] * 2), time, both).chunk(2)
        answer = without + self.settings["guidance"] * (given - without)
        return self.gaussian(answer, number, latent)

    def trained_moves(self) -> range:
        """The moves that are trained on."""
        return range(self.settings["moves"])

    @torch.no_grad()
    def sample(self, epoch: int) -> dict[str, Any]:
        """Latents before and after every move, log-probs, and advantages."""
        given = self.embed(self.prompts)
        empty = tuple(e.repeat(len(g), *[1] * (g.ndim - 1)) for e, g in zip(self.empty, given))  # noqa: B905
        both = tuple(torch.cat([e, g]) for e, g in zip(empty, given, strict=True))
        latents, log_probs = [self.noise[f"{epoch}.0"]], []
        for number in range(self.settings["moves"]):
            mean, std = self.move(number, latents[-1], both)
            after = mean
            if number in self.trained_moves():
                after = mean + std * self.noise[f"{epoch}.{number + 1}"]
            latents.append(after)
            log_probs.append(log_prob(after, mean, std))
        config = self.pipe.vae.config
        scaled = latents[-1] / config.scaling_factor + (config.shift_factor or 0.0)
        decoded = self.pipe.vae.decode(scaled, return_dict=False)[0]
        drawn = self.pipe.image_processor.postprocess(decoded, output_type="pil")
        # As both rivals do it in numpy: rewards that hardly differ lose digits in float32.
        reward = Redness()([], drawn).view(-1, self.settings["group"]).double()
        spread = reward.std(1, keepdim=True) + 1e-4
        advantage = ((reward - reward.mean(1, keepdim=True)) / spread).flatten().float()
        return {"both": both, "latents": latents, "old": log_probs, "advantage": advantage}

    def update(self, batch: dict[str, Any]) -> float:
        """One pass over the moves, a backward each, and an optimizer step."""
        moves, total = self.trained_moves(), 0.0
        for number in moves:
            loss = self.loss(number, batch) / len(moves)
            loss.backward()
            total += float(loss)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def loss(self, number: int, batch: dict[str, Any]) -> Tensor:
        """Of one move of all rows."""
        before, after = batch["latents"][number], batch["latents"][number + 1]
        mean, std = self.move(number, before, batch["both"])
        ratio = torch.exp(log_prob(after, mean, std) - batch["old"][number])
        advantage = batch["advantage"]
        clipped = torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
        if self.settings["beta"]:
            self.network.disable_adapters()
            with torch.no_grad():
                held_to, _ = self.move(number, before, batch["both"])
            self.network.enable_adapters()
            kl = ((mean - held_to) ** 2).mean(dim=(1, 2, 3)) / (2 * std**2)
            loss = loss + self.settings["beta"] * kl.mean()
        return loss


def log_prob(after: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``[B]`` the mean over the latent of a Gaussian's log-density."""
    each = -((after.detach() - mean) ** 2) / (2 * std**2) - torch.log(std)
    return (each - 0.5 * float(np.log(2 * np.pi))).mean(dim=(1, 2, 3))


class Ddpo(Loop):
    """ddpo-pytorch: DDIM with eta 1, every move trained."""

    def embed(self, texts: list[str]) -> tuple[Tensor, ...]:
        """CLIP's last states."""
        return (self.pipe.text_encoder(pictures.input_ids(self.pipe.tokenizer, texts))[0],)

    def predict(self, latent: Tensor, time: Tensor, states: tuple[Tensor, ...]) -> Tensor:
        """The UNet's noise."""
        found: Tensor = self.network(latent, time, states[0]).sample
        return found

    def gaussian(self, answer: Tensor, move: int, latent: Tensor) -> tuple[Tensor, Tensor]:
        """DDIM's, from the scheduler's own variance."""
        scheduler = self.pipe.scheduler
        time = int(scheduler.timesteps[move])
        last = time - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        alpha = scheduler.alphas_cumprod[time]
        after = scheduler.alphas_cumprod[last] if last >= 0 else scheduler.final_alpha_cumprod
        clean = (latent - (1 - alpha) ** 0.5 * answer) / alpha**0.5
        variance = scheduler._get_variance(time, last)
        mean = after**0.5 * clean + (1 - after - variance) ** 0.5 * answer
        return mean, variance**0.5


class FlowGrpo(Loop):
    """flow_grpo: the stochastic flow, every move trained but the last, which has no noise."""

    def trained_moves(self) -> range:
        """All but the last."""
        return range(self.settings["moves"] - 1)

    def embed(self, texts: list[str]) -> tuple[Tensor, ...]:
        """Joint states and the pooled ones."""
        states, _, pooled, _ = self.pipe.encode_prompt(
            prompt=texts, prompt_2=None, prompt_3=None, do_classifier_free_guidance=False,
            max_sequence_length=0,
        )  # fmt: skip
        return states, pooled

    def predict(self, latent: Tensor, time: Tensor, states: tuple[Tensor, ...]) -> Tensor:
        """The transformer's velocity."""
        found: Tensor = self.network(
            hidden_states=latent, timestep=time, encoder_hidden_states=states[0],
            pooled_projections=states[1], return_dict=False,
        )[0]  # fmt: skip
        return found

    def gaussian(self, answer: Tensor, move: int, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The reverse-time SDE's step with its noise level."""
        sigmas = self.pipe.scheduler.sigmas
        sigma, after = sigmas[move], sigmas[move + 1]
        dt = after - sigma
        if move not in self.trained_moves():
            spread = NOISE_LEVEL * (sigma / (1 - sigma)) ** 0.5
        else:
            spread = NOISE_LEVEL * (sigma / (1 - torch.where(sigma == 1, after, sigma))) ** 0.5
        mean = (
            latent * (1 + spread**2 / (2 * sigma) * dt)
            + answer * (1 + spread**2 * (1 - sigma) / (2 * sigma)) * dt
        )
        return mean, spread * (-dt) ** 0.5


def rival(settings: Settings) -> Measured:
    """The loop of the case's rival."""
    loop = FlowGrpo(settings) if settings["kind"] == "flow" else Ddpo(settings)
    clock, losses = Clock(units=images(settings), device=settings["device"]), []
    for epoch in range(settings["steps"] + 1):
        batch = loop.sample(epoch)
        losses += [loop.update(batch) for _ in range(UPDATES)]
        clock.tick()
    clock.losses = losses
    return clock.measured()


def case(kind: str, *, rate: float, **settings: Any) -> Settings:
    """A row of the table: 2 prompts, 3 pictures of each."""
    sizes = {"side": 16, "text": 128, "text_layers": 2, "unet": [64, 128, 128],
             "vae": [32, 64, 64], "groups": 16, "transformer": [4, 6, 32]}  # fmt: skip
    return {**sizes, "kind": kind, "prompts": 2, "group": 3, "moves": 4, "guidance": 3.0,
            "beta": 0.0, "rate": rate, **settings}  # fmt: skip


CELL = Cell(
    name="diffusion_rl",
    title="Denoising policies, LoRA, 6 pictures a batch, 4 guided moves, sampled, trained on twice",
    unit="images",
    cases={
        "DDPO, Stable Diffusion": case("diffusion", rate=3e-3),
        "flow_grpo, Stable Diffusion 3, KL": case("flow", rate=3e-3, beta=0.04),
    },
    sides={"mmalign": ours, "the rival's loop": rival},
    prepare=prepare,
    quick={**pictures.QUICK, "transformer": [1, 2, 16], "rate": 1e-2},
)

if __name__ == "__main__":
    main(CELL)
