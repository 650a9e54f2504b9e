"""Align a small Stable Diffusion that draws wrong pictures, judge it, and load it with diffusers.

python diffusion/quickstart.py [--steps 60] [--output runs/diffusion_quickstart]
"""

import argparse
import json
from pathlib import Path

from diffusers import DiffusionPipeline

from mmalign.diffusion import DiffusionPolicy
from mmalign.objectives import DPO
from mmalign.rng import generator
from mmalign.run import Evaluation, Run, Training
from mmalign.sources import Preferences
from mmalign.tinyworld.data import TaskJudge, TinyWorld


def main(steps: int, output: str) -> float:
    heldout = TinyWorld(task="draw", split="heldout", size=200, seed=2)
    run = Run(
        # What is aligned. "elbo": a step is one (timestep, noise) draw of the bound.
        policy=DiffusionPolicy(
            model="tinyworld/diffusion",
            likelihood="elbo",
            steps=10,
            guidance_scale=1.0,
            draws=4,
            timestep_range=(0.2, 1.0),
        ),
        # The same object as for text; here it is Diffusion-DPO.
        objective=DPO(beta=200.0),
        # Where pairs come from: recorded pictures, one right and one wrong. `Rollouts` in its place
        # makes it online DPO.
        source=Preferences(data=TinyWorld(task="draw", size=4000, seed=1), batch_size=32),
        training=Training(steps=steps, learning_rate=2e-4, warmup_steps=4, schedule="cosine"),
        evaluation=Evaluation(data=heldout, judges={"exact": TaskJudge()}),
        output=output,
    )
    folder = run.train()

    lines = (Path(output) / "evaluations.jsonl").read_text().splitlines()
    before, after = (json.loads(lines[i])["judge"]["exact"] for i in (0, -1))
    print(f"exact judge: {before['mean']:.3f} -> {after['mean']:.3f}")

    # What came out is a pipeline of diffusers (with `lora=LoRA()` above: `load_lora_weights`).
    pipe = DiffusionPipeline.from_pretrained(str(folder))
    image = pipe(
        ["a red circle and a blue square"],
        num_inference_steps=10,
        guidance_scale=1.0,
        generator=[generator("quickstart", 0)],
    ).images[0]
    image.resize((256, 256), 0).save(Path(output) / "sample.png")
    return after["mean"] - before["mean"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="runs/diffusion_quickstart")
    main(**vars(parser.parse_args()))
