"""Diffusion-DPO against the loop of diffusers' research script: ``-m benchmarks.diffusion_dpo``.

The script is ``examples/research_projects/diffusion_dpo/train_diffusion_dpo.py`` of
huggingface/diffusers at 071190d; `script` below does what its loop does, call by call, on this
cell's weights. Its choices that change the mathematics are brought into line on both sides: the
draws (noise, timesteps, the VAE's) are prepared once and given to both, AdamW has no weight decay,
and beta is 100 instead of 10,000, since differences of errors times 10,000 hold no fifth digit in
float32. Full fine-tuning, which the script has not, keeps a frozen copy as reference.

The data are one batch, so that an update is an epoch: the first one, not timed, fills the caches,
as the first epoch of a run does. With fixed noise the reference's scores are recorded too.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, mse_loss
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import language, pictures
from benchmarks.harness import RESULTS, Cell, Settings, main
from benchmarks.measure import Clock, Measured

if TYPE_CHECKING:
    from mmalign.run import Run

BETA = 100.0


def run_of(settings: Settings, output: Path) -> Run:
    """The run, as a config would describe it."""
    from mmalign.data import File
    from mmalign.diffusion import DiffusionPolicy
    from mmalign.lora import LoRA
    from mmalign.objectives import DPO
    from mmalign.references import Frozen, LoRAOff, Recorded
    from mmalign.run import Run
    from mmalign.sources import Preferences

    folder = Path(settings["folder"])
    kept = output.with_name("cache")
    reference: Any = LoRAOff() if settings["lora"] else Frozen()
    if settings["fixed_noise"]:
        reference = Recorded(folder=str(kept / "scores"), of=reference)
    lora = LoRA(path=str(folder / "lora")) if (folder / "lora").is_dir() else LoRA(
        rank=pictures.RANK, alpha=pictures.RANK, target_modules=pictures.LORA_TARGETS
    )  # fmt: skip
    return Run(
        policy=DiffusionPolicy(
            model=str(folder / "model"), likelihood="elbo", latent="sample", cache=str(kept),
            lora=lora if settings["lora"] else None,
        ),
        objective=DPO(beta=BETA),
        source=Preferences(
            data=File(path=str(folder / "rows.jsonl")), batch_size=settings["batch"],
            shuffle=False, fixed_noise=settings["fixed_noise"],
        ),
        reference=reference,
        training=language.training(settings),
        output=str(output),
    )  # fmt: skip


def prepare(settings: Settings, folder: Path) -> None:
    """Weights, pictures, the LoRA both start from, and the draws of every step."""
    pictures.diffusion(settings).save_pretrained(folder / "model")
    pictures.save_pairs(settings, folder)
    run = run_of({**settings, "folder": str(folder)}, folder / "prepared" / "run")
    policy = run.policy.load()
    if settings["lora"]:
        policy.save(folder / "lora")
    family: Any = policy.adapter.family  # type: ignore[attr-defined]
    draws = {}
    for step, batch in zip(range(settings["steps"] + 1), run.source.build(policy, seed=0)):  # noqa: B905
        rows = {name: value[:, 0] for name, value in batch.trajectory.stepwise.items()}
        posterior = family.pipe.vae.encode(_images(folder, batch.trajectory.outputs)).latent_dist
        unscaled = family.latents.from_latents(rows["latent"])
        draws[f"{step}.vae"] = ((unscaled - posterior.mean) / posterior.std).detach().contiguous()
        draws[f"{step}.noise"] = rows["noise"][::2].contiguous()
        draws[f"{step}.timestep"] = rows["timestep"][::2].long().contiguous()
    save_file(draws, folder / "draws.safetensors")


def _images(folder: Path, outputs: Any) -> Tensor:
    """Chosen and rejected, pair by pair, as the rows of a batch are."""
    names = [f"{i // 2}-{'rejected' if i % 2 else 'chosen'}.png" for i in range(len(outputs))]
    return torch.stack([pictures.read_pixels(folder / name) for name in names])


def ours(settings: Settings) -> Measured:
    """Through the public API."""
    run = run_of(settings, Path(settings["scratch"]) / "run")
    return language.run_ours(run, settings, units=float(settings["batch"]))


class Script:
    """The script's networks and its loop."""

    def __init__(self, settings: Settings) -> None:
        from diffusers import StableDiffusionPipeline

        self.settings, self.folder = settings, Path(settings["folder"])
        pipe = StableDiffusionPipeline.from_pretrained(self.folder / "model", safety_checker=None)
        self.vae, self.text, self.words = pipe.vae, pipe.text_encoder, pipe.tokenizer
        self.unet, self.scheduler = pipe.unet, pipe.scheduler
        for part in (self.vae, self.text, self.unet):
            part.requires_grad_(False)
        self.frozen: nn.Module | None = None
        if settings["lora"]:
            self._add_lora()
        else:
            self.frozen = copy.deepcopy(self.unet)
            self.unet.requires_grad_(True)
        self.trained = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings["rate"], betas=(0.9, 0.999), weight_decay=0.0
        )
        self.rows = language.read_rows(settings)
        self.draws = load_file(self.folder / "draws.safetensors")
        self.unet.train()

    def _add_lora(self) -> None:
        from peft import LoraConfig, set_peft_model_state_dict

        config = LoraConfig(
            r=pictures.RANK, lora_alpha=pictures.RANK, target_modules=list(pictures.LORA_TARGETS)
        )
        self.unet.add_adapter(config)
        saved = load_file(self.folder / "lora" / "adapter_model.safetensors")
        tensors = {name.removeprefix("base_model.model."): t for name, t in saved.items()}
        missed = set_peft_model_state_dict(self.unet, tensors)
        assert not missed.unexpected_keys

    def batch(self) -> tuple[Tensor, Tensor]:
        """Pixels, chosen before rejected, and token ids: what its data loader gives."""
        names = [row[side][0] for side in ("chosen_images", "rejected_images") for row in self.rows]
        ids = pictures.input_ids(self.words, [row["prompt"] for row in self.rows])
        return torch.stack([pictures.read_pixels(self.folder / name) for name in names]), ids

    def loss(self, step: int) -> Tensor:
        """What it computes before its backward pass."""
        pixels, ids = self.batch()
        draws = {k: self.draws[f"{step}.{k}"] for k in ("vae", "noise", "timestep")}
        posterior = self.vae.encode(pixels).latent_dist
        # Prepared pair by pair; here all chosen come first.
        drawn = torch.cat([draws["vae"][0::2], draws["vae"][1::2]])
        latents = (posterior.mean + posterior.std * drawn) * self.vae.config.scaling_factor
        noise, timestep = draws["noise"].repeat(2, 1, 1, 1), draws["timestep"].repeat(2)
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        states = self.text(ids)[0].repeat(2, 1, 1)

        def errors(network: nn.Module) -> Tensor:
            answer = network(noisy, timestep, states).sample
            each = mse_loss(answer.float(), noise.float(), reduction="none").mean(dim=(1, 2, 3))
            chosen, rejected = each.chunk(2)
            return chosen - rejected

        model = errors(self.unet)
        if self.frozen is None:
            self.unet.disable_adapters()
        with torch.no_grad():
            held_to = errors(self.frozen or self.unet)
        if self.frozen is None:
            self.unet.enable_adapters()
        return -logsigmoid(BETA / 2 * (held_to - model)).mean()

    def update(self, step: int) -> float:
        """One optimizer step."""
        loss = self.loss(step)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)


def script(settings: Settings) -> Measured:
    """The script's loop: VAE, text encoder and reference in every step."""
    loop = Script(settings)
    clock = Clock(units=float(settings["batch"]), device=settings["device"])
    for step in range(settings["steps"] + 1):
        clock.tick(loop.update(step))
    return clock.measured()


def case(*, lora: bool, fixed_noise: bool) -> Settings:
    """A row of the table; the rate moves the loss in both."""
    rate = 1e-3 if lora else 1e-5
    return {**pictures.MODEL, "batch": 1, "lora": lora, "fixed_noise": fixed_noise, "rate": rate}


CELL = Cell(
    name="diffusion_dpo",
    title="Diffusion-DPO, a pair a step, second epoch on, answers of VAE and text encoder cached",
    unit="pairs",
    cases={
        "LoRA": case(lora=True, fixed_noise=False),
        "full": case(lora=False, fixed_noise=False),
        "LoRA, fixed noise": case(lora=True, fixed_noise=True),
        "full, fixed noise": case(lora=False, fixed_noise=True),
    },
    sides={"mmalign": ours, "diffusers script": script},
    prepare=prepare,
    quick=pictures.QUICK,
)


def bounds(settings: Settings) -> dict[str, float]:
    """How much faster than the script a loop can be that leaves out what is cached.

    ``flops`` by the arithmetic of the parts, ``seconds`` by the CPU time that each takes alone,
    since a part's products do not all run at one speed.
    """
    pipe = pictures.diffusion(settings)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.requires_grad_(False)
    if settings["lora"]:
        from peft import LoraConfig

        pipe.unet.add_adapter(
            LoraConfig(r=pictures.RANK, target_modules=list(pictures.LORA_TARGETS))
        )
    else:
        pipe.unet.requires_grad_(True)
    rows, side = 2 * settings["batch"], settings["side"]
    pixels = torch.randn(rows, 3, pictures.pixels(settings), pictures.pixels(settings))
    ids = torch.randint(0, pictures.VOCABULARY, (settings["batch"], pictures.TOKENS))
    inputs = (
        torch.randn(rows, pictures.LATENT["channels"], side, side),
        torch.full((rows,), 500),
        torch.randn(rows, pictures.TOKENS, settings["text"]),
    )
    parts = {
        "frozen": _cost(lambda: (pipe.vae.encode(pixels), pipe.text_encoder(ids))),
        "reference": _cost(lambda: pipe.unet(*inputs)),
        "policy": _cost(lambda: pipe.unet(*inputs).sample.square().mean().backward(), grad=True),
    }
    kept = ["policy"] if settings["fixed_noise"] else ["policy", "reference"]
    found = {}
    for number, name in enumerate(("flops", "seconds")):
        found[name] = sum(p[number] for p in parts.values()) / sum(parts[k][number] for k in kept)
    return found


def _cost(call: Callable[[], Any], *, grad: bool = False) -> tuple[float, float]:
    """Floating-point operations, and CPU seconds, best of three."""
    with nullcontext() if grad else torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            call()
        seconds = []
        for _ in range(3):
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
    return float(counter.get_total_flops()), min(seconds)


def add_bounds(path: Path) -> None:
    """Write beside every ratio which one was possible, and print it."""
    result = json.loads(path.read_text())
    for name, found in result["cases"].items():
        if not found["summary"]:
            continue
        possible = bounds(found["settings"])
        ratio = found["summary"]["diffusers script"]["ratio"][0]
        found["notes"] = [
            f"speed {ratio:.2f} of a possible {possible['flops']:.2f} by arithmetic "
            f"({ratio / possible['flops']:.2f} of it) and {possible['seconds']:.2f} by the time of "
            f"the parts ({ratio / possible['seconds']:.2f} of it)"
        ]
        print(f"{name}: {found['notes'][0]}")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(CELL)
    if "--side" not in sys.argv:
        at = sys.argv.index("--output") + 1 if "--output" in sys.argv else None
        add_bounds(Path(sys.argv[at]) if at else RESULTS / f"{CELL.name}.json")
