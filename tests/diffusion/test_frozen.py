"""VAE and text encoders answer every question once, and what is remembered is what they said."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmalign.diffusion import DiffusionPolicy, FlowPolicy, frozen
from mmalign.diffusion.frozen import QUIET_BATCHES, seat
from mmalign.policy import Policy
from mmalign.types import Output, Prompt, Trajectory
from tests.diffusion.test_elbo import picture
from tests.diffusion.tiny import generators

KINDS = ["epsilon", "flow"]
COLORS = ("red", "green", "blue", "yellow")
WORDS = ("a red circle", "two large blue squares", "a small green triangle")


def load(folder: str, kind: str, **more: Any) -> Policy:
    spec = FlowPolicy if kind == "flow" else DiffusionPolicy
    return spec(model=folder, **{"steps": 2, "guidance_scale": 1.0, **more}).load()


def forget(policy: Policy) -> None:
    """What was remembered in memory is gone, as in a new process."""
    family = policy.adapter.family  # type: ignore[attr-defined]
    for part in (family.embed.frozen, family.latents.posteriors):
        part.memory.clear()
        part.memory_bytes = 0


def gone() -> None:
    """Policies nobody holds any more are gone, as at the end of a process."""
    gc.collect()


def encode(policy: Policy, *rows: int, key: str = "draws") -> Trajectory:
    """Pairs by number: prompt, chosen and rejected picture, and noise belong to the number."""
    outputs: list[list[Output]] = [[picture(2 * row), picture(2 * row + 1)] for row in rows]
    prompts = [Prompt(content=WORDS[row]) for row in rows]
    draws = generators(3, key)
    return policy.adapter.encode(prompts, outputs, generators=[draws[row] for row in rows])


@contextmanager
def counted(policy: Policy) -> Iterator[dict[str, int]]:
    """Rows that pass through the VAE's encoder and through the first text encoder."""
    pipe = policy.adapter.family.pipe  # type: ignore[attr-defined]
    rows = {"vae": 0, "text": 0}

    def watch(name: str, module: nn.Module) -> Any:
        def count(_: nn.Module, args: Any, kwargs: Any) -> None:
            rows[name] += len(args[0] if args else kwargs["input_ids"])

        return module.register_forward_pre_hook(count, with_kwargs=True)

    hooks = [watch("vae", pipe.vae.encoder), watch("text", pipe.text_encoder)]
    yield rows
    for hook in hooks:
        hook.remove()


def same(one: Trajectory, other: Trajectory) -> bool:
    return all(torch.equal(one.stepwise[k], other.stepwise[k]) for k in one.stepwise) and all(
        torch.equal(one.static[k], other.static[k]) for k in one.static
    )


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_and_prompt_is_read_once(
    folders: dict[str, str], kind: str, on_disk: bool, tmp_path: Path
) -> None:
    """Three pairs of six pictures in two overlapping batches; the second time over, nothing.

    What was remembered has the very bits of what was computed, in whatever batch it is asked for.
    """
    policy = load(folders[kind], kind, cache=str(tmp_path) if on_disk else None)
    with counted(policy) as rows:
        first = encode(policy, 0, 1)
        assert rows == {"vae": 4, "text": 2}
        both = encode(policy, 2, 1, 2)
        assert rows == {"vae": 6, "text": 3}
        again = encode(policy, 0, 1)
        assert rows == {"vae": 6, "text": 3}
    assert same(first, again)
    assert same(both.rows(torch.tensor([2, 3])), again.rows(torch.tensor([2, 3])))
    assert (len(list(tmp_path.iterdir())) > 0) is on_disk


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_what_else_is_asked(
    folders: dict[str, str], kind: str
) -> None:
    """A run that goes on after a crash remembers nothing, so it asks in other batches.

    Eight prompts and eight pictures at once, and then each of them alone: the same bits.
    """
    words = [f"{size} {color} circle" for size in ("a", "two large") for color in COLORS]
    outputs: list[list[Output]] = [[picture(row)] for row in range(len(words))]
    prompts, draws = [Prompt(content=word) for word in words], generators(len(words))
    policy = load(folders[kind], kind)
    whole = policy.adapter.encode(prompts, outputs, generators=draws)
    for row in range(len(words)):
        forget(policy)
        part = slice(row, row + 1)
        alone = policy.adapter.encode(prompts[part], outputs[part], generators=generators(1))
        for name in whole.static:
            assert torch.equal(alone.static[name], whole.static[name][part]), (name, row)
        assert torch.equal(alone.stepwise["latent"], whole.stepwise["latent"][part]), row


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_run_reads_nothing(folders: dict[str, str], kind: str, tmp_path: Path) -> None:
    """Written when the first policy goes; the folders say by what they were computed."""
    policy = load(folders[kind], kind, cache=str(tmp_path))
    expected = encode(policy, 0, 1)
    del policy
    gone()
    policy = load(folders[kind], kind, cache=str(tmp_path))
    with counted(policy) as rows:
        assert same(encode(policy, 0, 1), expected)
    assert rows == {"vae": 0, "text": 0}
    assert same(encode(load(folders[kind], kind), 0, 1), expected)
    said = [json.loads(path.read_text()) for path in tmp_path.glob("*/fingerprint.json")]
    assert len(said) == 2
    assert {"vae", "text_encoder"} <= {key for about in said for key in about}


def test_a_draw_from_the_posterior_is_a_new_one_each_time(
    folders: dict[str, str], tmp_path: Path
) -> None:
    """Mean and deviation are remembered, not the draw: with and without cache it is the same."""
    plain = load(folders["epsilon"], "epsilon", latent="sample")
    cached = load(folders["epsilon"], "epsilon", latent="sample", cache=str(tmp_path))
    for key in ("first", "second", "first"):
        assert same(encode(cached, 0, 1, key=key), encode(plain, 0, 1, key=key))
    one, other = (encode(cached, 0, key=key).stepwise["latent"] for key in ("first", "second"))
    mean = encode(load(folders["epsilon"], "epsilon"), 0).stepwise["latent"]
    assert not torch.equal(one, other) and not torch.equal(one, mean)


def changed(folders: dict[str, str], what: str, root: Path) -> Policy:
    """A policy one of whose frozen parts answers differently, with the cache of the others."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        folders["epsilon"], safety_checker=None, feature_extractor=None
    )
    part = {"vae": pipe.vae, "text": pipe.text_encoder}.get(what)
    if part is not None:
        with torch.no_grad():
            next(part.parameters()).view(-1)[0] += 1e-3
    if what == "tokenizer":
        pipe.tokenizer.pad_token_id = 5
    folder = root / f"model-{what}"
    pipe.save_pretrained(str(folder))
    dtype = "bfloat16" if what == "dtype" else "float32"
    return load(str(folder), "epsilon", cache=str(root / "cache"), dtype=dtype)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("nothing", {"vae": 0, "text": 0}),
        ("vae", {"vae": 4, "text": 0}),
        ("text", {"vae": 0, "text": 2}),
        ("tokenizer", {"vae": 0, "text": 2}),
        ("dtype", {"vae": 4, "text": 2}),
    ],
)
def test_what_another_model_said_is_never_read(
    folders: dict[str, str], what: str, expected: dict[str, int], tmp_path: Path
) -> None:
    """A weight moved by a thousandth, another padding, another precision."""
    encode(load(folders["epsilon"], "epsilon", cache=str(tmp_path / "cache")), 0, 1)
    gone()
    policy = changed(folders, what, tmp_path)
    with counted(policy) as rows:
        encode(policy, 0, 1)
    assert rows == expected


def test_another_crop_is_another_picture(folders: dict[str, str], tmp_path: Path) -> None:
    """The id is of the pixels that the VAE sees: the same file at another size is asked anew."""
    policy = load(folders["epsilon"], "epsilon", cache=str(tmp_path), resize=True)
    prompts, draws = [Prompt(content=WORDS[0])], generators(1)
    with counted(policy) as rows:
        whole = picture(0, size=32)
        for output in (whole, whole.crop((0, 0, 16, 16)), whole.crop((0, 0, 16, 16))):
            policy.adapter.encode(prompts, [[output]], generators=draws)
    assert rows == {"vae": 2, "text": 1}


def test_a_damaged_cache_is_computed_again(folders: dict[str, str], tmp_path: Path) -> None:
    """Only what the damaged file held: the pictures, not the texts."""
    expected = encode(load(folders["epsilon"], "epsilon", cache=str(tmp_path)), 0, 1)
    gone()
    (about,) = (p for p in tmp_path.glob("*/fingerprint.json") if '"vae"' in p.read_text())
    (shard,) = about.parent.glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 4
    shard.write_bytes(content)
    policy = load(folders["epsilon"], "epsilon", cache=str(tmp_path))
    with counted(policy) as rows:
        assert same(encode(policy, 0, 1), expected)
    assert rows == {"vae": 4, "text": 0}


def test_autocast_does_not_change_what_is_remembered(folders: dict[str, str]) -> None:
    """Scoring under autocast asks for the empty prompt; the answer is that of any other time."""
    plain, coarse = (load(folders["epsilon"], "epsilon") for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = coarse.adapter.family.embed.empty()  # type: ignore[attr-defined]
    expected = plain.adapter.family.embed.empty()  # type: ignore[attr-defined]
    assert torch.equal(found["states"], expected["states"])
    assert found["states"].dtype == torch.float32


def test_memory_is_bounded(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder the answers used last are kept; a batch larger than that comes out whole."""
    policy = load(folders["epsilon"], "epsilon")
    expected = encode(policy, 0, 1, 2)
    # Mean and deviation of a picture are 2 x 4 x 8 x 8 float32: 2048 bytes.
    monkeypatch.setattr(frozen, "MEMORY_BYTES", 3 * 2048)
    policy = load(folders["epsilon"], "epsilon")
    posteriors = policy.adapter.family.latents.posteriors  # type: ignore[attr-defined]
    with counted(policy) as rows:
        assert same(encode(policy, 0, 1, 2), expected)
        assert len(posteriors.memory) == 3 and posteriors.memory_bytes == 3 * 2048
        encode(policy, 2)
        assert rows["vae"] == 6
        encode(policy, 0)
        assert rows["vae"] == 8


def test_a_part_is_with_the_network_while_it_is_needed() -> None:
    """And on the CPU after enough batches that were remembered whole."""
    cpu, network = torch.device("cpu"), torch.device("cuda", 0)
    assert seat(cpu, network, 0) == network
    assert [seat(network, network, quiet) for quiet in (1, QUIET_BATCHES - 1)] == [network] * 2
    assert seat(network, network, QUIET_BATCHES) == cpu
    assert seat(cpu, network, QUIET_BATCHES + 1) == cpu
    # Never needed, because everything was found on disk: it stays where it was loaded.
    assert seat(cpu, network, 1) == cpu
    assert {seat(cpu, cpu, quiet) for quiet in range(2 * QUIET_BATCHES)} == {cpu}


def test_the_guidance_of_a_path_is_no_quiet_batch(folders: dict[str, str]) -> None:
    """The empty prompt is asked for at every move, and that says nothing about the prompts.

    Counted are batches since the text encoder was needed: 0 after one with a new prompt.
    """
    policy = load(folders["epsilon"], "epsilon", likelihood="path", guidance_scale=2.0, steps=4)
    texts = policy.adapter.family.embed.frozen  # type: ignore[attr-defined]
    quiet = []
    for word in (WORDS[0], WORDS[1], WORDS[1], WORDS[1]):
        trajectory = policy.sample([Prompt(content=word)], group_size=1, generators=generators(1))
        policy.scores(trajectory)
        quiet.append(texts.quiet)
    assert quiet == [0, 0, 1, 2]


def longhand(policy: Policy, word: str) -> Tensor:
    """The text encoder asked directly, padded to its length."""
    pipe = policy.adapter.family.pipe  # type: ignore[attr-defined]
    ids = pipe.tokenizer(
        [word],
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    with torch.no_grad():
        found: Tensor = pipe.text_encoder(ids)[0]
    return found


def test_an_embedding_is_the_text_encoders(folders: dict[str, str], tmp_path: Path) -> None:
    for cache in (None, str(tmp_path)):
        policy = load(folders["epsilon"], "epsilon", cache=cache)
        for _ in range(2):
            found = policy.adapter.family.embed(list(WORDS))["states"]  # type: ignore[attr-defined]
            for row, word in enumerate(WORDS):
                torch.testing.assert_close(found[row : row + 1], longhand(policy, word))
