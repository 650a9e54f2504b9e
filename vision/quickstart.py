"""Align a small LLaVA that hallucinates objects, judge it, and load the result without mmalign.

python vision/quickstart.py [--steps 30] [--output runs/vision_quickstart]
"""

import argparse
import json
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.locate import locate
from mmalign.lora import LoRA
from mmalign.objectives import DPO
from mmalign.run import Evaluation, Run, Training
from mmalign.selectors import BestWorst
from mmalign.sources import Rollouts
from mmalign.tinyworld.data import TaskJudge, TinyWorld
from mmalign.vision import LVLMPolicy


def main(steps: int, output: str) -> float:
    heldout = TinyWorld(task="describe", split="heldout", size=200, seed=2)
    run = Run(
        # What is aligned: a LLaVA or Qwen-VL, any number of pictures in a prompt. The LoRA goes
        # into the language model; the vision tower stays as it is.
        policy=LVLMPolicy(model="tinyworld/lvlm", lora=LoRA(rank=16), max_new_tokens=48),
        # What is minimised: the object that aligns text models and diffusion models too.
        objective=DPO(beta=0.1),
        # Where pairs come from: six descriptions a picture, the best and the worst of them.
        source=Rollouts(
            data=TinyWorld(task="describe", size=4000, seed=1),
            reward=TaskJudge(),
            num_generations=6,
            batch_size=16,
            selector=BestWorst(),
        ),
        training=Training(steps=steps, learning_rate=2e-3, warmup_steps=4, schedule="cosine"),
        evaluation=Evaluation(data=heldout, judges={"exact": TaskJudge()}),
        output=output,
    )
    folder = run.train()

    lines = (Path(output) / "evaluations.jsonl").read_text().splitlines()
    before, after = (json.loads(lines[i])["judge"]["exact"] for i in (0, -1))
    print(f"exact judge: {before['mean']:.3f} -> {after['mean']:.3f}")

    # What came out is peft's and transformers' own layout.
    base = AutoModelForImageTextToText.from_pretrained(locate("tinyworld/lvlm"), dtype="float32")
    model = PeftModel.from_pretrained(base, folder)
    processor = AutoProcessor.from_pretrained(folder)
    prompt = heldout.prompts()[0]
    text = processor.apply_chat_template(list(prompt.content), add_generation_prompt=True)
    inputs = processor(text=[text], images=list(prompt.images), return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=48)
    print(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return after["mean"] - before["mean"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", default="runs/vision_quickstart")
    main(**vars(parser.parse_args()))
