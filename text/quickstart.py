"""Align a small Llama that errs in one sum of four, judge it, and load the result without mmalign.

python text/quickstart.py [--steps 40] [--output runs/text_quickstart]
"""

import argparse
import json
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmalign.locate import locate
from mmalign.lora import LoRA
from mmalign.objectives import DPO
from mmalign.run import Evaluation, Run, Training
from mmalign.selectors import BestWorst
from mmalign.sources import Rollouts
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TaskJudge, TinyWorld


def main(steps: int, output: str) -> float:
    heldout = TinyWorld(task="arithmetic", split="heldout", size=200, seed=2)
    run = Run(
        # What is aligned: any folder or hub name that AutoModelForCausalLM loads.
        policy=TextPolicy(model="tinyworld/text", lora=LoRA(rank=16), max_new_tokens=32),
        # What is minimised. The same object works for every modality, offline and online.
        objective=DPO(beta=0.1),
        # Where pairs come from: eight answers a sum, the best and the worst of them.
        source=Rollouts(
            data=TinyWorld(task="arithmetic", size=4000, seed=1),
            reward=TaskJudge(),
            num_generations=8,
            batch_size=24,
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
    base = AutoModelForCausalLM.from_pretrained(locate("tinyworld/text"), dtype="float32")
    model = PeftModel.from_pretrained(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "compute 7 + 5 - 4"}]
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=32)
    print(tokenizer.decode(ids[0], skip_special_tokens=True))
    return after["mean"] - before["mean"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", default="runs/text_quickstart")
    main(**vars(parser.parse_args()))
