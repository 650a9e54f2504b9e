"""What is wrong with pictures, prompts, pipelines and caches is named, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from mmalign import checkpoint, config
from mmalign.config.nodes import ConfigError
from mmalign.data import File
from mmalign.data.several import Several
from mmalign.demonstrations import Demonstrations
from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.locate import configs
from mmalign.log import RunFolder
from mmalign.objectives import DPO
from mmalign.policy import Policy
from mmalign.ranked import Ranked
from mmalign.run import Evaluation, Run, Training
from mmalign.sources import Preferences, Rollouts
from mmalign.store import ABOUT
from mmalign.types import Output, Prompt
from mmalign.unpaired import Unpaired
from tests.diffusion.test_elbo import picture
from tests.diffusion.tiny import generators

GOOD = {"prompt": "a red circle", "chosen_images": ["a.png"], "rejected_images": ["b.png"]}
LONG = " ".join(["red"] * 17)  # 19 tokens with both ends, of which the encoder reads 18


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of pictures: two good ones, and several that are not."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, name in enumerate(("a", "b")):
        picture(number).save(folder / f"{name}.png")
    picture(2, size=32).save(folder / "large.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    return folder


@pytest.fixture(scope="module")
def policy(folders: dict[str, str]) -> Policy:
    return DiffusionPolicy(model=folders["epsilon"], steps=2, guidance_scale=1.0).load()


def table(folder: Path, *changes: dict[str, Any], **settings: Any) -> File:
    """A file with one good row, and one for each of the changes."""
    rows = [GOOD] + [{k: v for k, v in {**GOOD, **c}.items() if v is not None} for c in changes]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return File(path=str(path), **settings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rejected_images": ["large.png"]}, r", rejected: the picture is 32 x 32 .* resize=true"),
        ({"chosen_images": ["gone.png"]}, r": missing image: 'gone.png' does not exist"),
        ({"chosen_images": ["cut.png"]}, r": 'cut.png': .*truncated"),
        ({"prompt": ""}, r": empty prompt: 'prompt' is empty"),
        ({"prompt": " \n"}, r": empty prompt: 'prompt' is empty"),
        ({"prompt": LONG}, r", the prompt of 19 tokens is too long .* reads 18; shorten it.*'red"),
        ({"images": ["a.png"]}, r", the prompt: .* give a string without images"),
        ({"prompt": [{"role": "user", "content": "a circle"}]}, r", the prompt: .* plain text"),
        ({"chosen_images": ["a.png", "b.png"]}, r", chosen: .* pictures, .* is a clip"),
        (
            {"chosen": "a", "rejected": "b", "chosen_images": None, "rejected_images": None},
            r", chosen: this model answers in pictures, and the recorded output is a str",
        ),
    ],
)
def test_a_bad_pair_is_named_by_file_line_and_side(
    policy: Policy, data: Path, change: dict[str, Any], said: str
) -> None:
    """The second line of the file, whatever place it has in a batch."""
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2{said}"):
        source = Preferences(data=table(data, change, {}), batch_size=3).build(policy, seed=0)
        next(iter(source))


def test_what_pictures_a_file_may_have(policy: Policy, data: Path) -> None:
    """Grey, palette and transparent files are read as RGB; of a PIL picture that is asked for."""
    for mode in ("L", "P", "RGBA"):
        picture(3, mode=mode).save(data / f"{mode}.png")
    rows = table(data, *[{"chosen_images": [f"{mode}.png"]} for mode in ("L", "P", "RGBA")])
    assert len(next(iter(Preferences(data=rows, batch_size=4).build(policy, seed=0))).group) == 8
    with pytest.raises(ValueError, match="row 0: the picture has the channels L, not RGB"):
        policy.adapter.encode(
            [Prompt(content="a circle")], [[picture(0, mode="L")]], generators=generators(1)
        )


def nothing(prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
    """A reward that no test comes to."""
    return torch.zeros(len(outputs))


SOURCES: dict[str, tuple[dict[str, Any], Callable[[File], Any], str]] = {
    "labelled": (
        {"completion_images": ["large.png"], "label": True},
        lambda rows: Unpaired(data=rows, batch_size=2),
        r":2, completion: the picture is 32 x 32",
    ),
    "sides": (
        {"rejected_images": ["large.png"]},
        lambda rows: Unpaired(data=rows, rows="pairs", batch_size=4),
        r":2, rejected side, completion: the picture is 32 x 32",
    ),
    "demonstrations": (
        {"completion_images": ["large.png"]},
        lambda rows: Demonstrations(data=rows, batch_size=2),
        r":2, completion: the picture is 32 x 32",
    ),
    "imitated sides": (
        {"rejected_images": ["large.png"]},
        lambda rows: Demonstrations(data=rows, of="rejected", batch_size=2),
        r":2, completion: the picture is 32 x 32",
    ),
    "lists": (
        {"completion_images": ["a.png", "large.png"], "scores": [0, 1]},
        lambda rows: Ranked(data=rows, batch_size=2),
        r":2, completions\[1\]: the picture is 32 x 32",
    ),
    "rollouts": (
        {"prompt": LONG},
        lambda rows: Rollouts(data=rows, reward=nothing, num_generations=1, batch_size=2),
        r":2, the prompt of 19 tokens is too long",
    ),
    "several": (
        {"rejected_images": ["large.png"]},
        lambda rows: Preferences(data=Several(parts=(rows, rows)), batch_size=4),
        r":2, rejected: the picture is 32 x 32",
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_names_the_row(policy: Policy, data: Path, kind: str) -> None:
    change, make, said = SOURCES[kind]
    rows = table(data, change)
    bad = Path(rows.path).read_text().splitlines()[1]
    good = bad.replace("large.png", "b.png").replace(LONG, "a red circle")
    Path(rows.path).write_text(f"{good}\n{bad}\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl{said}"):
        next(iter(make(rows).build(policy, seed=0)))


def test_an_evaluation_names_the_row(policy: Policy, data: Path) -> None:
    from mmalign.evaluation import evaluate

    rows = table(data, {"prompt": LONG})
    judged = Evaluation(data=rows, judges={"none": nothing})
    with pytest.raises(ValueError, match=r"rows\.jsonl:2, the prompt of 19 tokens is too long"):
        evaluate(policy, judged, seed=0)


def run_on(folders: dict[str, str], rows: File, output: Path, **training: Any) -> Run:
    return Run(
        policy=DiffusionPolicy(model=folders["epsilon"], steps=2, guidance_scale=1.0),
        objective=DPO(beta=100.0),
        source=Preferences(data=rows, batch_size=1, shuffle=False),
        training=Training(checkpoint_every=1, learning_rate=1e-4, **training),
        output=str(output),
    )


def test_other_rows_are_used_and_what_was_done_stays(
    folders: dict[str, str], data: Path, tmp_path: Path
) -> None:
    """Bad files are skipped and counted; a picture of another size stops the run at its update.

    Two updates are logged and saved by then, and with that row mended the run goes on from them.
    """
    bad = [{"chosen_images": ["gone.png"]}, {"rejected_images": ["cut.png"]}]
    large = {"prompt": "a blue square", "chosen_images": ["large.png"]}
    rows = table(data, *bad, {"prompt": "a green triangle"}, large, on_error="skip")
    found = rows.preferences()
    assert len(found) == 3 and found.dropped == {"missing image": 1, "broken image": 1}
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=r"rows\.jsonl:5, chosen: the picture is 32 x 32"):
        run_on(folders, rows, output, steps=3).train()
    assert [line["step"] for line in RunFolder(output).read("metrics.jsonl")] == [1, 2]
    saved = checkpoint.latest(output / "checkpoints")
    assert saved is not None and saved.step == 2
    picture(5).save(data / "large.png")
    run_on(folders, rows, output, steps=3).train(resume=True)
    assert [line["step"] for line in RunFolder(output).read("metrics.jsonl")] == [1, 2, 3]
    assert (output / "model" / "model_index.json").is_file()


def edited(folder: str, copy: Path, file: str, **changes: Any) -> str:
    """A copy of a pipeline with some values of a JSON file changed, or taken out (None)."""
    shutil.copytree(folder, copy)
    values = json.loads((copy / file).read_text())
    values.update(changes)
    (copy / file).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return str(copy)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "model_index.json",
            {"_class_name": "KandinskyPipeline"},
            "class KandinskyPipeline are not supported yet; supported are StableDiffusionPipeline",
        ),
        ("model_index.json", {"_class_name": None}, "does not name the pipeline's class"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "flow_prediction"},
            "prediction_type 'flow_prediction' .* not one of epsilon, .*; mend",
        ),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "clips the latent; switch"),
    ],
)
def test_a_pipeline_that_is_none_of_ours(
    folders: dict[str, str], tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    """When it is loaded, not at the first update."""
    model = edited(folders["epsilon"], tmp_path / "copy", file, **changes)
    with pytest.raises(ValueError, match=said):
        DiffusionPolicy(model=model).load()


def test_a_folder_without_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{")
    for model in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ValueError, match=rf"no pipeline at '{model}' \(`policy.model`\)"):
            FlowPolicy(model=str(model)).load()


@pytest.mark.parametrize(
    ("part", "kind", "changes", "said"),
    [
        ("unet", UNet2DConditionModel, {"in_channels": 9}, "have 4 channels and .* reads 9"),
        ("vae", AutoencoderKL, {"latent_channels": 8}, "have 8 channels and the network reads 4"),
        ("vae", AutoencoderKL, {"in_channels": 1}, "pictures of 1 channels, and pictures are RGB"),
    ],
)
def test_parts_that_do_not_belong_together(
    folders: dict[str, str], tmp_path: Path, part: str, kind: Any, changes: Any, said: str
) -> None:
    """An inpainting network, the VAE of another pipeline, one of grey pictures."""
    copy = tmp_path / "copy"
    shutil.copytree(folders["epsilon"], copy)
    kind.from_config({**kind.load_config(str(copy / part)), **changes}).save_pretrained(
        str(copy / part)
    )
    with pytest.raises(ValueError, match=said):
        DiffusionPolicy(model=str(copy)).load()


def ask(policy: Policy) -> None:
    policy.adapter.encode(
        [Prompt(content="a red circle")], [[picture(0)]], generators=generators(1)
    )


def test_a_cache_of_something_else_is_refused_by_name(
    folders: dict[str, str], tmp_path: Path
) -> None:
    """A folder says whose answers it holds; one that was copied over another is not believed.

    Another scaling factor is another VAE: its answers have a folder of their own.
    """
    cache, other = tmp_path / "cache", tmp_path / "other"
    scaled = edited(folders["epsilon"], tmp_path / "s", "vae/config.json", scaling_factor=0.5)
    for model in (folders["epsilon"], scaled):
        ask(DiffusionPolicy(model=model, cache=str(cache)).load())
    of_vae = [p.parent for p in cache.glob(f"*/{ABOUT}") if '"vae"' in p.read_text()]
    assert len(of_vae) == 2
    of_vae[0].rename(other)
    of_vae[1].rename(of_vae[0])
    other.rename(of_vae[1])
    policy = DiffusionPolicy(model=scaled, cache=str(cache)).load()
    with pytest.raises(ValueError, match=rf"{ABOUT} says .* something else .*settings.* delete"):
        ask(policy)


def test_a_cache_holds_a_picture_as_the_model_sees_it(
    folders: dict[str, str], tmp_path: Path
) -> None:
    """Another resolution, and another pipeline with another VAE, never find each other's."""
    cache = str(tmp_path)
    image = [[picture(0, size=32)]]
    prompt = [Prompt(content="a red circle")]
    for model, size in (("epsilon", 16), ("epsilon", 24), ("flow", 16)):
        spec = FlowPolicy if model == "flow" else DiffusionPolicy
        settings: dict[str, Any] = {"model": folders[model], "size": size, "resize": True}
        kept, plain = spec(**settings, cache=cache).load(), spec(**settings).load()
        found, expected = (
            p.adapter.encode(prompt, image, generators=generators(1)).stepwise["latent"]
            for p in (kept, plain)
        )
        assert torch.equal(found, expected), (model, size)


def test_an_unknown_setting_names_its_line_and_the_nearest_one() -> None:
    text = (configs() / "diffusion/diffusion_dpo.yaml").read_text()
    number = text.splitlines().index("  guidance_scale: 1.0") + 1
    with pytest.raises(ConfigError, match=rf"a.yaml:{number}: .*did you mean 'guidance_scale'"):
        config.loads(text.replace("guidance_scale", "guidence_scale"), name="a.yaml")
