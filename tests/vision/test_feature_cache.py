"""Features of a frozen tower on disk: found by a later run, by no other weights or settings."""

import gc
import logging
import subprocess
import sys

import pytest
import torch
from PIL import Image

from mmalign.lora import LoRA
from mmalign.types import Prompt
from mmalign.vision.feature_cache import FeatureCache
from mmalign.vision.lvlm_policy import LVLMPolicy, linear_layers, vision_tower
from tests.vision.lvlm_models import FAMILIES

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(params=["llava", "qwen3_vl", "idefics3"])
def folder(request, tmp_path):
    """A saved model: one with a projector, one whose features are several layers', and tiles."""
    model, processor = FAMILIES[request.param]()
    model.save_pretrained(str(tmp_path / "model"))
    processor.save_pretrained(str(tmp_path / "model"))
    return tmp_path


@pytest.fixture
def llava(tmp_path):
    model, processor = FAMILIES["llava"]()
    model.save_pretrained(str(tmp_path / "model"))
    processor.save_pretrained(str(tmp_path / "model"))
    return tmp_path


class Reader:
    """A run of its own: a model that was just loaded, and how many pictures its tower read."""

    def __init__(self, folder, **settings):
        settings = {"lora": LoRA(rank=2), "feature_cache": str(folder / "cache"), **settings}
        self.policy = LVLMPolicy(model=str(folder / "model"), **settings).load()
        self.pictures = 0

        def count(_, __, kwargs):
            self.pictures += 1

        vision_tower(self.policy.model).register_forward_pre_hook(count, with_kwargs=True)

    def scores(self, *colours):
        """Log-probs of two answers about each of some pictures, and what the tower read."""
        parts = [{"type": "image"}, {"type": "text", "text": "describe the picture"}]
        prompts = [
            Prompt(
                content=({"role": "user", "content": parts},),
                images=(Image.new("RGB", (16, 16), COLOURS[name]),),
            )
            for name in colours
        ]
        adapter, model = self.policy.adapter, self.policy.model
        answers = [["one two", "red"]] * len(colours)
        trajectory = adapter.encode(prompts, answers, generators=[])
        before = self.pictures
        found = adapter.scores(model, trajectory).log_probs.detach()
        return found, self.pictures - before

    def end(self):
        """What the end of a process does: nothing refers to the cache any more."""
        del self.policy
        gc.collect()


def read(folder, *colours, **settings):
    reader = Reader(folder, **settings)
    try:
        return reader.scores(*colours)
    finally:
        reader.end()


def shards(folder):
    return sorted((folder / "cache").rglob("shard-*.safetensors"))


def test_a_later_run_reads_no_picture_again(folder):
    """The same bits as without a cache, with the memory on and off."""
    expected, cost = read(folder, "red", "green", feature_cache=None)
    assert cost >= 2
    found, first = read(folder, "red", "green")
    assert first == cost and torch.equal(found, expected)
    for megabytes in (256, 0):
        found, later = read(folder, "red", "green", feature_cache_mb=megabytes)
        assert later == 0 and torch.equal(found, expected)


def test_only_what_is_missing_is_computed(llava):
    assert read(llava, "red")[1] == 1
    found, others = read(llava, "green", "red", "blue")
    assert others == 2
    assert torch.equal(found, read(llava, "green", "red", "blue", feature_cache=None)[0])
    assert read(llava, "red", "green", "blue")[1] == 0


def test_off_by_default(llava):
    read(llava, "red", feature_cache=None)
    assert LVLMPolicy().feature_cache is None
    assert not (llava / "cache").exists()


def test_other_weights_of_the_tower_are_another_store(llava):
    """A single number in the tower, changed in the file or in memory."""
    read(llava, "red")
    reader = Reader(llava)
    with torch.no_grad():
        next(vision_tower(reader.policy.model).parameters()).view(-1)[0] += 0.5
    assert reader.scores("red")[1] == 1
    reader.policy.model.save_pretrained(str(llava / "ignored"))
    reader.end()
    assert len(shards(llava)) == 2
    assert read(llava, "red")[1] == 0


def test_the_decoder_and_its_lora_do_not_count(llava):
    read(llava, "red")
    reader = Reader(llava, lora=LoRA(rank=4))
    with torch.no_grad():
        reader.policy.model.get_decoder().norm.weight.mul_(2)
    assert reader.scores("red")[1] == 0
    reader.end()


@pytest.mark.parametrize(
    "settings",
    [{"dtype": "bfloat16"}, {"lora": None}, {"attn_implementation": "eager"}],
    ids=lambda settings: next(iter(settings)),
)
def test_another_way_of_computing_is_another_store(llava, settings):
    """Other dtypes and kernels round otherwise; full fine-tuning keeps what the trained projector
    reads, not what it writes."""
    read(llava, "red")
    found, cost = read(llava, "red", **settings)
    assert cost == 1
    again, later = read(llava, "red", **settings)
    assert later == 0 and torch.equal(found, again)
    assert torch.equal(found, read(llava, "red", **settings, feature_cache=None)[0])


def test_another_layer_of_the_tower_is_another_store(llava):
    read(llava, "red")
    config = llava / "model" / "config.json"
    text = config.read_text()
    assert '"vision_feature_layer": -1' in text
    config.write_text(text.replace('"vision_feature_layer": -1', '"vision_feature_layer": -2'))
    assert read(llava, "red")[1] == 1


def test_autocast_is_another_entry(llava):
    read(llava, "red")
    reader = Reader(llava)
    with torch.autocast("cpu", torch.bfloat16):
        assert reader.scores("red")[1] == 1
    assert reader.scores("red")[1] == 0
    reader.end()
    assert read(llava, "red")[1] == 0


def test_a_damaged_shard_is_set_aside_and_computed_again(llava, caplog):
    """One byte flipped: the picture in that shard is read again, the other is not."""
    expected, _ = read(llava, "red")
    read(llava, "green")
    (damaged, _) = shards(llava)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING):
        found, again = read(llava, "red", "green")
    assert again == 1 and torch.equal(found[:2, :3], expected[:, :3])
    assert "was changed after it was written" in caplog.text
    assert len(list((llava / "cache").rglob("damaged-*"))) == 1


def test_a_process_writes_when_it_ends(llava):
    code = (
        "from tests.vision.test_feature_cache import Reader; from pathlib import Path\n"
        f"reader = Reader(Path({str(llava)!r}))\n"
        "assert reader.scores('red', 'blue')[1] == 2"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert read(llava, "red", "blue")[1] == 0
    assert not list((llava / "cache").rglob(".tmp-*"))


def test_a_tower_in_training_is_refused(llava, monkeypatch):
    with pytest.raises(ValueError, match="the vision tower is trained, so its features change"):
        Reader(llava, train_vision_tower=True)
    model, _ = FAMILIES["llava"]()
    targets = linear_layers(model, [vision_tower(model)])
    with pytest.raises(ValueError, match="the vision tower is trained"):
        Reader(llava, lora=LoRA(rank=2, target_modules=targets))
    monkeypatch.setattr("mmalign.vision.lvlm_policy.family_of", lambda _: None)
    with pytest.raises(ValueError, match="features of models of type 'llava' are not kept"):
        Reader(llava)


def test_a_state_that_went_away_is_written(tmp_path):
    """Weights that change leave what was computed from them on disk for who has them again."""
    weights = [torch.zeros(3)]
    cache = FeatureCache(megabytes=1, folder=tmp_path)
    before = cache.state_of(weights)
    cache.add(before, "a", torch.ones(2))
    weights[0].add_(1)
    after = cache.state_of(weights)
    assert cache.get(after, "a") is None and cache.get(before, "a") is None
    weights[0].sub_(1)
    again = cache.state_of(weights)
    assert again not in (before, after) and cache.get(again, "a").tolist() == [1, 1]
    other = FeatureCache(megabytes=1, folder=tmp_path)
    assert other.get(other.state_of(weights, lambda: {"layer": "2"}), "a") is None
    assert other.get(other.state_of([torch.zeros(3)]), "a").tolist() == [1, 1]
