"""Every picture through the vision tower once, against rows that each read their own."""

import copy
import logging

import pytest
import torch
from PIL import Image

from mmalign import lora
from mmalign.fingerprints import content_key
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.references import LoRAOff
from mmalign.text.policy import checkpoint_activations
from mmalign.types import Prompt
from mmalign.vision.families import FAMILIES as KNOWN
from mmalign.vision.families import family_of, pictures_of
from mmalign.vision.feature_cache import MEGABYTE, FeatureCache
from mmalign.vision.features import embed, features_of, picture_keys, positions_of
from mmalign.vision.lvlm_policy import LVLMPolicy, linear_layers, vision_tower
from tests.vision.lvlm_models import FAMILIES, adapter_of, generators

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SAME_SHAPE = ("llava", "internvl", "idefics3", "smolvlm", "gemma3")
"""Families that see plain colours in squares of one size: the picture's shape does not show."""
ANSWERS = [["one", "two three four"], ["five six", "one two"], ["yes", "no yes"], ["red"]]


def asked(*colours, text="describe the picture", size=(16, 16)):
    """One turn: the pictures, then the text."""
    parts = [*[{"type": "image"}] * len(colours), {"type": "text", "text": text}]
    pictures = tuple(Image.new("RGB", size, COLOURS[name]) for name in colours)
    return Prompt(content=({"role": "user", "content": parts},), images=pictures)


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return FAMILIES[request.param]()


@pytest.fixture
def prompts():
    """1, 0 and 3 pictures, one of them in two prompts, and a larger one."""
    return [
        asked("red"),
        asked(text="compute 3 + 4"),
        asked("green", "blue", "red", text="how many squares are there in all pictures ?"),
        asked("red", size=(24, 16)),
    ]


def counting(model):
    """Grows by the number of squares (or patch grids) in each call of the tower."""
    seen = []

    def hook(_, args, kwargs):
        given = kwargs.get("grid_thw", args[0] if args else kwargs.get("pixel_values"))
        seen.append(len(given))

    vision_tower(model).register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def squares(adapter, prompts):
    """How many of those every distinct picture of the prompts has: ``{key: number}``."""
    found = {}
    for one in adapter.static_of(prompts)["per_image"]:
        for picture in pictures_of(one, adapter.family):
            pixels = picture["pixel_values"]
            # LLaVA-NeXT and LLaVA-OneVision put the tiles of a picture on an axis of its own.
            tiles = pixels.shape[1] if pixels.dim() == 5 else 1
            found[content_key(dict(picture))] = tiles
    return found


def counting_rows(model):
    """Grows by the number of rows in each call of the decoder."""
    seen = []

    def hook(_, __, kwargs):
        seen.append(len(kwargs["inputs_embeds"]))

    model.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def trained(model, what):
    """Leaves ``what`` to train as `LVLMPolicy` does."""
    tower = vision_tower(model)
    parts = [model.get_decoder(), *([tower] if "tower" in what else [])]
    if what.startswith("lora"):
        lora.attach(model, LoRA(rank=4), targets=linear_layers(model, parts))
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    else:
        tower.requires_grad_("tower" in what)
    return model


def results(model, adapter, trajectory):
    """Log-probs, and the gradient of a weighted sum of them by every trained parameter."""
    model.zero_grad()
    found = adapter.scores(model, trajectory).log_probs
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    (found * weights).sum().backward()
    moving = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
    return found.detach(), {k: g for k, g in moving.items() if g is not None}


def assert_close(found, expected, relative=1e-5):
    """The difference of all numbers together, against the size of all numbers together."""
    assert (found - expected).norm() <= relative * expected.norm()


def whole(gradients):
    """The gradient as one vector."""
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


class TestTower:
    """What goes through it, and how often."""

    @pytest.mark.parametrize("what", ["lora", "full, tower"])
    @pytest.mark.parametrize(
        ("questions", "answers", "distinct"),
        [
            ([asked("red")], [["one", "two"]], 1),
            ([asked("red")], [["one", "two", "three", "four"]], 1),
            ([asked("red"), asked("red", text="count")], [["one"], ["two"]], 1),
            ([asked("red", "blue", "red")], [["one", "two"]], 2),
            ([asked("red", "blue"), asked("blue", "green")], [["one"], ["two", "three"]], 3),
            ([asked("red"), asked("red", size=(16, 32))], [["one"], ["two"]], None),
            ([asked(text="compute 3 + 4")], [["one", "two"]], 0),
        ],
    )
    def test_runs_once_for_a_distinct_picture(self, family, what, questions, answers, distinct):
        """Not for each row, nor each prompt. A plain-coloured picture of another shape is another
        picture where the processor keeps shapes, and the same where it crops to a square."""
        model, processor = family
        trained(model, what)
        adapter = adapter_of(model, processor, feature_cache_mb=0)
        trajectory = adapter.encode(questions, answers, generators=[])
        if distinct is None:
            distinct = 2 - (model.config.model_type in SAME_SHAPE)
        expected = squares(adapter, questions)
        assert len(expected) == distinct
        seen = counting(model)
        adapter.scores(model, trajectory)
        assert sum(seen) == sum(expected.values())
        seen.clear()
        plain = adapter_of(model, processor, plain=True)
        plain.scores(model, plain.encode(questions, answers, generators=[]))
        assert sum(seen) == sum(
            squares(adapter, [question])[key] * len(rows)
            for question, rows, keys in zip(
                questions, answers, trajectory.static["image_keys"], strict=True
            )
            for key in keys
        )

    def test_frozen_it_runs_in_the_first_epoch_alone(self, family, prompts):
        """For pieces of a batch as for the whole, and for sampling as for scoring."""
        model, processor = family
        adapter = adapter_of(trained(model, "lora"), processor)
        seen = counting(model)
        trajectory = adapter.encode(prompts, ANSWERS, generators=[])
        first = adapter.scores(model, trajectory).log_probs
        assert sum(seen) == sum(squares(adapter, prompts).values())
        seen.clear()
        again = adapter.encode(prompts, ANSWERS, generators=[])
        assert torch.equal(adapter.scores(model, again).log_probs, first)
        adapter.scores(model, again.rows(torch.tensor([5, 0])))
        drawn = adapter.sample(model, prompts, group_size=3, generators=generators(4))
        adapter.scores(model, drawn)
        assert seen == []

    def test_sampling_reads_a_picture_once(self, family):
        model, processor = family
        adapter = adapter_of(model, processor, feature_cache_mb=0)
        seen = counting(model)
        questions = [asked("red"), asked("blue", "red"), asked("red", text="count")]
        adapter.sample(model, questions, group_size=4, generators=generators(3))
        assert sum(seen) == sum(squares(adapter, questions).values())

    def test_changed_weights_are_never_served_old_features(self, family, prompts):
        model, processor = family
        adapter = adapter_of(trained(model, "lora"), processor)
        trajectory = adapter.encode(prompts, ANSWERS, generators=[])
        before = adapter.scores(model, trajectory).log_probs
        last = list(vision_tower(model).parameters())[-3]
        with torch.no_grad():
            last.add_(torch.randn_like(last))
        seen = counting(model)
        after = adapter.scores(model, trajectory).log_probs
        assert sum(seen) >= 3
        assert (after - before).abs().max() > 1e-3
        fresh = adapter_of(model, processor)
        assert torch.equal(after, fresh.scores(model, trajectory).log_probs)

    @pytest.mark.parametrize("what", ["full, tower", "lora, tower"])
    def test_trained_nothing_of_it_is_kept(self, family, prompts, what):
        model, processor = family
        adapter = adapter_of(trained(model, what), processor)
        trajectory = adapter.encode(prompts, ANSWERS, generators=[])
        seen = counting(model)
        with torch.no_grad():
            adapter.scores(model, trajectory)
        first = list(seen)
        adapter.scores(model, trajectory)
        assert seen == first * 2 and sum(first) >= 3
        assert len(adapter.features) == 0

    def test_a_feature_depends_on_no_other_picture(self, family, prompts):
        """To the last bit: a resumed run meets pictures in other company."""
        model, processor = family
        adapter = adapter_of(trained(model, "lora"), processor)
        static = adapter.static_of(prompts)

        def features(index):
            return features_of(
                model,
                [static["per_image"][i] for i in index],
                [static["image_keys"][i] for i in index],
                family=adapter.family,
                cache=FeatureCache(megabytes=0),
            )

        together = features([0, 1, 2, 3])
        for i, expected in enumerate(together):
            assert torch.equal(features([i])[0], expected)

    def test_policy_and_its_twin_share_features(self, family, prompts):
        """A network on the same tensors computes nothing again; one on a copy of them does."""
        model, processor = family
        adapter = adapter_of(trained(model, "lora"), processor)
        policy = Policy(adapter=adapter, model=model)
        off = LoRAOff().build(policy)
        trajectory = adapter.encode(prompts, ANSWERS, generators=[])
        policy.scores(trajectory)
        copied = copy.deepcopy(model)
        again, anew = counting(off.network), counting(copied)
        off.scores(trajectory)
        adapter.scores(copied, trajectory)
        assert sum(again) == 0 and sum(anew) == sum(squares(adapter, prompts).values())
        lora.disable(copied)
        plain = adapter_of(copied, processor, plain=True)
        expected = plain.scores(copied, trajectory).log_probs
        assert_close(off.scores(trajectory), expected.detach())

    def test_autocast_is_another_computation(self, family, prompts):
        model, processor = family
        adapter = adapter_of(trained(model, "lora"), processor)
        trajectory = adapter.encode(prompts[:1], ANSWERS[:1], generators=[])
        seen = counting(model)
        adapter.scores(model, trajectory)
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                adapter.scores(model, trajectory)
        adapter.scores(model, trajectory)
        assert seen == [*squares(adapter, prompts[:1]).values()] * 2

    def test_the_projector_is_trained_under_autocast(self, prompts):
        """Casts of its weights must not be those made while the frozen tower ran."""
        model, processor = FAMILIES["llava"]()
        adapter = adapter_of(trained(model, "full"), processor)
        trajectory = adapter.encode(prompts, ANSWERS, generators=[])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, gradient = results(model, adapter, trajectory)
        moved = {k: g for k, g in gradient.items() if "projector" in k}
        assert len(moved) == 4 and all(g.abs().max() > 1e-4 for g in moved.values())


class TestExactness:
    """The same numbers as rows that read their own pictures."""

    @pytest.mark.parametrize(
        ("what", "dtype", "close"),
        [
            ("lora", torch.float64, 1e-6),
            ("lora, tower", torch.float32, 1e-5),
            ("full", torch.float32, 1e-5),
            ("full, tower", torch.float64, 1e-6),
        ],
    )
    def test_log_probs_and_gradients(self, family, prompts, what, dtype, close):
        """Side by side and packed, recomputing activations or not, twice each (from the cache).

        In float64 all but the layers' norms and the log-probs themselves is computed so.
        """
        model, processor = family
        trained(model, what).to(dtype)
        plain = adapter_of(model, processor, plain=True)
        trajectory = adapter_of(model, processor).encode(prompts, ANSWERS, generators=[])
        expected, gradients = results(model, plain, trajectory)
        assert ("tower" in what) == any(
            g.abs().max() > 0 for k, g in gradients.items() if "vis" in k
        )
        for recompute in (False, True):
            if recompute:
                checkpoint_activations(model)
            for share in (False, True):
                adapter = adapter_of(model, processor, share_prompts=share)
                for _ in range(2):
                    rows = counting_rows(model)
                    found, gradient = results(model, adapter, trajectory)
                    shared = share and not adapter.family.blocks
                    assert rows[0] == (1 if shared else len(trajectory))
                    assert_close(found, expected, close)
                    assert gradient.keys() == gradients.keys()
                    assert_close(whole(gradient), whole(gradients), close)

    def test_a_trained_projector_reads_a_frozen_tower(self, prompts):
        """The tower runs in the first epoch alone; the projector moves on and is not kept."""
        model, processor = FAMILIES["llava"]()
        trained(model, "full")
        adapter, plain = adapter_of(model, processor), adapter_of(model, processor, plain=True)
        trajectory = adapter.encode(prompts, ANSWERS, generators=[])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        counts = []
        for _ in range(3):
            expected, gradients = results(model, plain, trajectory)
            seen = counting(model)
            found, gradient = results(model, adapter, trajectory)
            counts.append(sum(seen))
            assert_close(found, expected)
            moved = {k: g for k, g in gradients.items() if "projector" in k}
            assert len(moved) == 4 and all(g.abs().max() > 1e-4 for g in moved.values())
            assert_close(whole({k: gradient[k] for k in moved}), whole(moved))
            optimizer.step()
        assert counts == [3, 0, 0]
        # Four tokens of the tower's width for each of the three pictures.
        assert adapter.features.num_bytes == 3 * 4 * 24 * 4

    def test_the_other_answer_moves_nothing(self, family):
        model, processor = family
        adapter = adapter_of(model, processor, share_prompts=True)
        first, second = (
            adapter.scores(model, adapter.encode([asked("red")], [answers], generators=[]))
            for answers in (["one two", "red"], ["one two", "a large blue square"])
        )
        same = torch.allclose if adapter.family.blocks else torch.equal
        assert same(first.log_probs[0, :3], second.log_probs[0, :3])


class TestReading:
    """Where features and positions go."""

    def test_positions_by_hand(self):
        """A 16 x 24 px picture is 2 rows of 3 tokens; text goes on behind the larger side."""
        for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
            model, processor = FAMILIES[name]()
            adapter = adapter_of(model, processor)
            static = adapter.static_of([asked("red", text="one two", size=(24, 16))])
            ids = static["prompt_ids"][0]
            before = ids.tolist().index(processor.image_token_id)
            after = len(ids) - before - 6
            found = positions_of(
                model,
                ids,
                static["per_token"][0],
                static["per_image"][0],
                family=adapter.family,
            )
            text = list(range(before))
            rest = list(range(before + 3, before + 3 + after))
            expected = [
                text + [before] * 6 + rest,
                text + [before + i for i in (0, 0, 0, 1, 1, 1)] + rest,
                text + [before + i for i in (0, 1, 2, 0, 1, 2)] + rest,
            ]
            assert found.tolist() == expected
            assert model.base_model.rope_deltas is None

    def test_features_stand_at_the_image_tokens(self, family):
        model, _ = family
        image = model.config.image_token_id
        ids = torch.tensor([[5, image, image, 6], [image, 7, 8, 9]])
        features = [torch.full((2, 32), 2.0), torch.full((1, 32), 3.0)]
        found = embed(model, ids, features)
        words = model.get_input_embeddings()(ids)
        assert (found[0, 1:3] == 2).all() and (found[1, 0] == 3).all()
        for row, column in ((0, 0), (0, 3), (1, 1), (1, 2), (1, 3)):
            assert torch.equal(found[row, column], words[row, column])

    def test_tokens_and_features_must_agree_in_number(self, family):
        model, processor = family
        adapter = adapter_of(model, processor)
        trajectory = adapter.encode([asked("red")], [["one"]], generators=[])
        image = model.config.image_token_id
        places = (trajectory.static["prompt_ids"][0] == image).nonzero()
        trajectory.static["prompt_ids"][0][places[0]] = 5
        given = len(places)
        with pytest.raises(
            ValueError, match=f"hold {given - 1} image tokens and the pictures have {given} feat"
        ):
            adapter.scores(model, trajectory)

    def test_keys_tell_pictures_apart(self, family):
        model, processor = family
        adapter = adapter_of(model, processor)
        static = adapter.static_of([asked("red", "blue", "red"), asked("blue")])
        several, other = static["image_keys"]
        # A picture is one, or as many as it has tiles.
        number = len(several) // 3
        red, blue, again = (several[i * number : (i + 1) * number] for i in range(3))
        assert red == again != blue
        # LLaVA-OneVision reads one of several pictures otherwise than one alone.
        assert (blue == other) == (adapter.family.number is None)
        assert picture_keys({}, adapter.family) == []


class TestPolicy:
    """What a config says."""

    @pytest.fixture
    def folder(self, family, tmp_path):
        model, processor = family
        model.save_pretrained(str(tmp_path))
        processor.save_pretrained(str(tmp_path))
        return str(tmp_path)

    def test_settings_arrive(self, folder):
        adapter = LVLMPolicy(model=folder, feature_cache_mb=3).load().adapter
        assert adapter.features.limit == 3 * MEGABYTE
        assert adapter.family in KNOWN.values()
        with pytest.raises(ValueError, match="feature_cache_mb must be at least 0; got -1"):
            LVLMPolicy(model=folder, feature_cache_mb=-1).load()

    def test_an_unknown_family_is_said_and_read_plainly(self, family, prompts, caplog):
        model, processor = family
        known = adapter_of(model, processor)
        trajectory = known.encode(prompts, ANSWERS, generators=[])
        expected = known.scores(model, trajectory).log_probs
        model.config.model_type = "another"
        with caplog.at_level(logging.WARNING):
            assert family_of(model) is None
        assert "models of type 'another'" in caplog.text
        adapter = adapter_of(model, processor)
        assert adapter.family is None
        assert_close(adapter.scores(model, trajectory).log_probs, expected)


class TestCache:
    """Bounded, and never of other weights."""

    def test_the_least_recently_used_leaves(self):
        """Room for two values of half a megabyte."""
        cache = FeatureCache(megabytes=1)
        half = torch.zeros(MEGABYTE // 8)
        cache.add(1, "a", half)
        cache.add(1, "b", half)
        assert cache.get(1, "a") is not None
        cache.add(1, "c", half)
        assert [cache.get(1, key) is not None for key in "abc"] == [True, False, True]
        assert cache.num_bytes == MEGABYTE and len(cache) == 2
        cache.add(1, "d", torch.zeros(MEGABYTE // 4))
        assert [cache.get(1, key) is not None for key in "acd"] == [False, False, True]
        cache.add(1, "too large", torch.zeros(MEGABYTE // 4 + 1))
        assert cache.get(1, "too large") is None and cache.get(1, "d") is not None
        cache.add(1, "d", half)
        assert cache.num_bytes == MEGABYTE // 2

    def test_no_room(self):
        cache = FeatureCache(megabytes=0)
        cache.add(1, "a", torch.zeros(1))
        assert len(cache) == 0

    def test_what_is_kept_is_a_copy_without_history(self):
        cache = FeatureCache(megabytes=1)
        value = torch.ones(3, requires_grad=True) * 2
        cache.add(1, "a", value)
        value.detach().zero_()
        kept = cache.get(1, "a")
        assert kept.tolist() == [2, 2, 2] and not kept.requires_grad

    def test_states(self):
        cache = FeatureCache(megabytes=1)
        weights = [torch.zeros(3), torch.zeros(2)]
        first = cache.state_of(weights)
        cache.add(first, "a", torch.zeros(4))
        assert cache.state_of(weights) == first
        weights[1].add_(1)
        second = cache.state_of(weights)
        assert second != first
        assert len(cache) == 0 and cache.num_bytes == 0
        weights[1] = torch.zeros(2)
        third = cache.state_of(weights)
        assert third not in (first, second)
        moved = torch.zeros(3)
        weights[0].data = moved
        assert cache.state_of(weights) not in (first, second, third)
        assert cache.state_of(weights[:1]) not in (first, second, third)

    def test_tensors_at_the_place_of_earlier_ones_are_others(self):
        cache = FeatureCache(megabytes=1)
        states = set()
        for _ in range(20):
            states.add(cache.state_of([torch.zeros(3)]))
        assert len(states) == 20
