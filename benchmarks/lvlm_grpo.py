"""GRPO's training step on images, against TRL: ``python -m benchmarks.lvlm_grpo``.

The model of `benchmarks.lvlm_dpo`, tower frozen on both sides, and groups recorded as in
`benchmarks.text_grpo`: a prompt of one image and words, its completions, rewards and log-probs. An
image is processed outside of the clock on both sides. Within it, TRL's loss reads it once for every
completion; ours once. No step sees an image that was seen before, so that nothing is gained from
keeping features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks import language, lvlm_dpo
from benchmarks.harness import Cell, Settings, main
from benchmarks.measure import Measured, Product, language_model_work
from benchmarks.text_grpo import RecordedSource, read_groups, recorded_inputs

if TYPE_CHECKING:
    from mmalign.policy import Policy
    from mmalign.types import Batch


def prepare(settings: Settings, folder: Path) -> None:
    """Weights, processor, images, and for every step a group on an image of its own."""
    torch.manual_seed(0)
    model, processor = lvlm_dpo.llava(settings)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(1)
    side, groups = settings["pixels"], []
    for step in range(settings["steps"] + 1):
        noise = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{step}.png")
        words = language.random_words(settings, settings["words"], generator=generator)
        length = settings["answer"] - 1
        answers = [
            [*language.random_words(settings, length, generator=generator), language.EOS]
            for _ in range(settings["group"])
        ]
        image = lvlm_dpo.SPECIAL.index("<image>")
        group = {
            "image": f"{step}.png",
            "words": words,
            "prompt": [*[image] * lvlm_dpo.image_tokens(settings), *words],
            "answers": answers,
            "reward": torch.rand(settings["group"], generator=generator).tolist(),
        }
        pixels = _pixels(processor, folder / group["image"])
        groups.append({**group, **_log_probs(model.eval(), group, pixels, banned=image)})
    (folder / "groups.json").write_text(json.dumps(groups))


def _pixels(processor: Any, path: Path) -> Tensor:
    with Image.open(path) as image:
        found = processor.image_processor(images=image.convert("RGB"), return_tensors="pt")
    pixels: Tensor = found["pixel_values"]
    return pixels


@torch.no_grad()
def _log_probs(
    model: Any, group: Mapping[str, Any], pixels: Tensor, *, banned: int
) -> dict[str, list[list[float]]]:
    """Of every token, under each side's step distribution.

    Image placeholders are no symbols of ours, and are of TRL's.
    """
    found: dict[str, list[list[float]]] = {"behaviour": [], "behaviour_without_images": []}
    for answer in group["answers"]:
        ids = torch.tensor([[*group["prompt"], *answer]])
        output = model(input_ids=ids, pixel_values=pixels, logits_to_keep=len(answer) + 1)
        logits, taken = output.logits[0, :-1].float(), torch.tensor(answer)[:, None]
        found["behaviour"].append(logits.log_softmax(-1).gather(1, taken)[:, 0].tolist())
        logits[:, banned] = float("-inf")
        rest = logits.log_softmax(-1).gather(1, taken)[:, 0].tolist()
        found["behaviour_without_images"].append(rest)
    return found


def units(settings: Settings) -> float:
    """Tokens of a step, the prompt with its image once: ``P + G R``."""
    return float(lvlm_dpo.prompt_length(settings) + settings["group"] * settings["answer"])


def work(settings: Settings) -> list[Product]:
    """Three forwards' worth of the language model, and the frozen tower once on the image."""
    language_model = language_model_work(
        body=language.body_of(settings),
        vocabulary=settings["vocabulary"],
        prompt=lvlm_dpo.prompt_length(settings),
        answer=settings["answer"],
        group=settings["group"],
        count=1,
        passes=3,
    )
    return [*language_model, lvlm_dpo.tower_work(settings, images=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedImageGroups:
    """A source that hands out what is recorded in a folder; see `mmalign.protocols.Source`."""

    folder: str

    def build(self, policy: Policy, *, seed: int) -> RecordedSource:
        """Everything is encoded here, outside of the clock, as it is on TRL's side."""
        groups = read_groups({"folder": self.folder})
        return RecordedSource([_batch(policy, group, Path(self.folder)) for group in groups])


def _batch(policy: Policy, group: Mapping[str, Any], folder: Path) -> Batch:
    from mmalign.types import Batch, Prompt

    parts = [{"type": "image"}, {"type": "text", "text": language.text_of(group["words"])}]
    with Image.open(folder / group["image"]) as opened:
        image = opened.convert("RGB")
    prompt = Prompt(content=({"role": "user", "content": parts},), images=(image,))
    texts = [language.text_of(answer[:-1]) for answer in group["answers"]]
    trajectory = policy.adapter.encode([prompt], [texts], generators=[])
    assert trajectory.static["prompt_ids"][0].tolist() == group["prompt"]
    assert trajectory.stepwise["token"].tolist() == group["answers"]
    return Batch(
        trajectory=trajectory,
        group=torch.zeros(len(texts), dtype=torch.int64),
        reward=torch.tensor(group["reward"]),
        weight=trajectory.mask.float(),
        behaviour=torch.tensor(group["behaviour_without_images"]),
    )


def ours(settings: Settings) -> Measured:
    """Through the public API, with a source of the recorded groups."""
    from mmalign.objectives import GRPO
    from mmalign.run import Run
    from mmalign.vision import LVLMPolicy

    folder = Path(settings["folder"])
    run = Run(
        policy=LVLMPolicy(model=str(folder / "model"), max_new_tokens=settings["answer"]),
        objective=GRPO(beta=0.0, aggregate="token"),
        source=RecordedImageGroups(folder=str(folder)),
        training=language.training(settings),
        output=str(Path(settings["scratch"]) / "run"),
    )
    return language.run_ours(run, settings, units=units(settings))


def trl(settings: Settings) -> Measured:
    """TRL's trainer on the same groups; a row has its image, as `_prepare_inputs` gives it one."""
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    folder, size = Path(settings["folder"]), settings["group"]
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    model.get_encoder(modality="image").requires_grad_(False)
    processor = AutoProcessor.from_pretrained(folder / "model")
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=GRPOConfig(
            beta=0.0,
            num_generations=size,
            per_device_train_batch_size=size,
            max_completion_length=settings["answer"],
            **{**language.trl_arguments(settings), "train_sampling_strategy": "random"},
        ),
        train_dataset=Dataset.from_dict({"prompt": ["w5"] * (settings["steps"] + 1)}),
        processing_class=processor,
    )
    device = trainer.accelerator.device
    groups = []
    for group in read_groups(settings):
        pixels = _pixels(processor, folder / group["image"]).to(device)
        images = {"pixel_values": pixels.expand(size, -1, -1, -1), "num_images": [1] * size}
        groups.append({**recorded_inputs(group, device), **images})
    recorded = iter(groups)
    trainer._prepare_inputs = lambda batch: next(recorded)
    return language.run_trl(trainer, settings, units=units(settings))


def trl_scored(settings: Settings) -> Measured:
    """TRL's head at scored positions alone, as where Triton runs."""
    language.trl_scores_completions_only()
    return trl(settings)


def case(group: int) -> Settings:
    """A row of the table."""
    return {**lvlm_dpo.SMALL, "group": group}


CELL = Cell(
    name="lvlm_grpo",
    title="The training step of GRPO on answers about images, 576 image tokens and 32 words / "
    "answers 64, one group a step",
    unit="unique tokens",
    cases={"G = 8": case(8), "G = 4": case(4)},
    sides={"mmalign": ours, "TRL": trl, "TRL, head at scored positions": trl_scored},
    prepare=prepare,
    work=work,
    quick=lvlm_dpo.CELL.quick,
)

if __name__ == "__main__":
    main(CELL)
