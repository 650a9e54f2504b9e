import inspect
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.lora import LoRA
from mmalign.protocols import Adapter
from mmalign.types import Prompt, Trajectory
from mmalign.vision.lvlm_inputs import keeps_order
from mmalign.vision.lvlm_policy import LVLMPolicy, vision_tower
from tests.vision.lvlm_models import FAMILIES, adapter_of, generators

ANSWERS = [["one", "two three four"], ["five six"], ["yes", "no yes"], ["red"]]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (99, 99, 99)}


def picture(colour: str, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour])


def asked(text: str, *colours: str) -> Prompt:
    """One turn: the pictures, then the text."""
    parts = [*[{"type": "image"}] * len(colours), {"type": "text", "text": text}]
    return Prompt(
        content=({"role": "user", "content": parts},), images=tuple(map(picture, colours))
    )


def in_turns() -> Prompt:
    """Three turns, pictures of unequal size in the first and the last."""
    content = (
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "what is there ?"}],
        },
        {"role": "assistant", "content": "a red circle"},
        {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image"}]},
    )
    return Prompt(content=content, images=(picture("red", (24, 16)), picture("blue", (16, 32))))


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return FAMILIES[request.param]()


@pytest.fixture
def prompts():
    """0, 1 and 3 pictures, and pictures in two turns."""
    return [
        asked("describe the picture", "red"),
        asked("compute 3 + 4"),
        asked("how many squares are there in all pictures ?", "green", "blue", "red"),
        in_turns(),
    ]


def alone(model, processor, prompt, answer, temperature=1.0):
    """One row by itself: what the processor returns, and the answer behind it."""
    adapter = adapter_of(model, processor)
    static = adapter.static_of([prompt])
    inputs = {"input_ids": static["prompt_ids"][0][None], **static["per_image"][0]}
    answer = torch.tensor(answer)[None]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
    for key, value in static["per_token"][0].items():
        inputs[key] = torch.cat([value[None], torch.zeros_like(answer)], 1)
    logits = model(**inputs).logits[0, -answer.shape[1] - 1 : -1].double() / temperature
    logits[:, list(adapter.sampling.banned)] = float("-inf")
    return logits.log_softmax(-1).gather(1, answer[0][:, None])[:, 0]


@pytest.mark.parametrize(("plain", "temperature"), [(False, 0.6), (True, 1.0), (False, 1.3)])
def test_batched_scores_are_those_of_each_row_alone(family, prompts, temperature, plain):
    """Rows of unequal length with 0, 1, 2 and 3 pictures; three-dimensional positions included."""
    model, processor = family
    adapter = adapter_of(model, processor, temperature=temperature, plain=plain)
    trajectory = adapter.encode(prompts, ANSWERS, generators=generators(4))
    scores = adapter.scores(model, trajectory).log_probs
    for row in range(len(trajectory)):
        kept = trajectory.mask[row]
        prompt = prompts[int(trajectory.prompt_of[row])]
        answer = trajectory.stepwise["token"][row][kept].tolist()
        expected = alone(model, processor, prompt, answer, temperature)
        torch.testing.assert_close(scores[row][kept].double(), expected, atol=1e-5, rtol=0)


def test_rows_own_their_pictures(family, prompts):
    """Shuffled, split and joined again, every row scores as before."""
    model, processor = family
    adapter = adapter_of(model, processor)
    trajectory = adapter.encode(prompts, ANSWERS, generators=generators(4))
    scores = adapter.scores(model, trajectory).log_probs
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = trajectory.rows(order)
    torch.testing.assert_close(
        adapter.scores(model, shuffled).log_probs, scores[order], atol=2e-5, rtol=0
    )
    for piece in (torch.tensor([2]), torch.tensor([5, 0])):
        torch.testing.assert_close(
            adapter.scores(model, shuffled.rows(piece)).log_probs,
            scores[order[piece]],
            atol=2e-5,
            rtol=0,
        )
    joined = Trajectory.concatenate([trajectory.rows(order[:2]), trajectory.rows(order[2:])])
    torch.testing.assert_close(
        adapter.scores(model, joined).log_probs, scores[order], atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("colour", ["grey", "blue"])
def test_another_picture_changes_the_log_prob(family, colour):
    """Of the row whose picture it is, and of no other."""
    model, processor = family
    adapter = adapter_of(model, processor)
    texts = [["a red circle"], ["one"]]
    neighbour = asked("describe the picture", "green")
    before, after = (
        adapter.scores(
            model,
            adapter.encode([asked("describe the picture", c), neighbour], texts, generators=[]),
        ).log_probs
        for c in ("red", colour)
    )
    assert (before[0] - after[0]).abs().max() > 1e-3
    torch.testing.assert_close(before[1], after[1], atol=1e-5, rtol=0)


def test_every_key_of_the_processor_reaches_policy_and_reference(family, prompts, monkeypatch):
    """Of a model of no known family; the others' pictures are told in `test_features`."""
    model, processor = family
    adapter = adapter_of(model, processor, plain=True)
    returned = processor(text=[processor.image_token], images=[picture("red")], return_tensors="pt")
    trajectory = adapter.encode(prompts, ANSWERS, generators=generators(4))
    seen = []
    original = type(model.base_model).forward

    def spying(self, *args, **kwargs):
        seen.append({k: v for k, v in kwargs.items() if v is not None})
        return original(self, *args, **kwargs)

    spying.__signature__ = inspect.signature(original)
    monkeypatch.setattr(type(model.base_model), "forward", spying)
    adapter.scores(model, trajectory, want=frozenset({"kl"}), against=model)
    assert len(seen) == 2
    shape = seen[0]["input_ids"].shape
    for inputs in seen:
        assert set(returned) <= set(inputs)
        assert inputs["attention_mask"].shape == shape
        if "mm_token_type_ids" in inputs:
            assert inputs["mm_token_type_ids"].shape == shape


def test_every_key_of_the_processor_reaches_generation(family, prompts, monkeypatch):
    """With the prompts, each once; later tokens need none of them."""
    model, processor = family
    adapter = adapter_of(model, processor, plain=True)
    returned = processor(text=[processor.image_token], images=[picture("red")], return_tensors="pt")
    seen = []
    original = type(model).forward

    def spying(self, *args, **kwargs):
        seen.append({k: v for k, v in kwargs.items() if v is not None})
        return original(self, *args, **kwargs)

    spying.__signature__ = inspect.signature(original)
    monkeypatch.setattr(type(model), "forward", spying)
    adapter.sample(model, prompts, group_size=2, generators=generators(4))
    first, *later = seen
    assert set(returned) <= set(first)
    assert first["attention_mask"].shape == first["input_ids"].shape
    assert first["attention_mask"].sum(1).tolist() == [
        len(ids) for ids in adapter.static_of(prompts)["prompt_ids"]
    ]
    assert later
    for inputs in later:
        assert not set(inputs) & (set(returned) - {"input_ids", "attention_mask"})


@pytest.mark.parametrize(("plain", "temperature"), [(False, 0.6), (True, 1.0), (False, 1.3)])
def test_the_ratio_of_a_fresh_sample_is_one(family, prompts, temperature, plain):
    """What sampling recorded, from a cache that is filled once a prompt, is what scoring says."""
    model, processor = family
    adapter = adapter_of(model, processor, temperature=temperature, plain=plain)
    trajectory = adapter.sample(model, prompts, group_size=2, generators=generators(4))
    ratio = (adapter.scores(model, trajectory).log_probs - trajectory.log_probs).exp()
    assert (ratio - 1).abs().max() < 1e-4
    assert (trajectory.log_probs < 0).equal(trajectory.mask)


def test_a_sample_depends_on_no_other_row(family, prompts):
    model, processor = family
    adapter = adapter_of(model, processor)
    together = adapter.sample(model, prompts, group_size=2, generators=generators(4))
    for i, prompt in enumerate(prompts):
        own = [torch.Generator().manual_seed(i)]
        single = adapter.sample(model, [prompt], group_size=2, generators=own)
        assert single.outputs == together.outputs[2 * i : 2 * i + 2]


def test_no_answer_holds_an_image_token(family, prompts):
    """Though the head is made to want nothing else; nor may a recorded answer."""
    model, processor = family
    image = model.config.image_token_id
    model.lm_head.register_forward_hook(
        lambda _, __, logits: logits.index_fill(-1, torch.tensor(image), 50.0)
    )
    adapter = adapter_of(model, processor)
    trajectory = adapter.sample(model, prompts, group_size=8, generators=generators(4))
    assert image not in trajectory.stepwise["token"]
    assert adapter.scores(model, trajectory).log_probs.isfinite().all()
    with pytest.raises(ValueError, match="row 0: an answer must not contain image tokens"):
        adapter.encode(prompts[:1], [[f"one {processor.image_token}"]], generators=[])


def test_pictures_and_their_places_must_agree(family):
    model, processor = family
    adapter = adapter_of(model, processor)
    good = asked("describe the picture", "red", "blue")
    one_too_few = Prompt(content=good.content, images=good.images[:1])
    with pytest.raises(ValueError, match="prompt 1 has 2 places for images and 1 images"):
        adapter.encode([good, one_too_few], [["one"], ["two"]], generators=[])
    written = {"role": "user", "content": "describe the picture"}
    with pytest.raises(ValueError, match="prompt 0 has 0 places for images and 2 images"):
        adapter.encode([Prompt(content=(written,), images=good.images)], [["one"]], generators=[])


def test_image_tokens_are_never_cut(family):
    """The needed length is named, and it suffices."""
    model, processor = family
    prompt = asked("describe the picture", "red", "blue", "green")
    adapter = adapter_of(model, processor)
    (ids,) = adapter.static_of([prompt])["prompt_ids"]
    banned = torch.tensor(adapter.sampling.banned)
    needed, images = len(ids), int(torch.isin(ids, banned).sum())
    tight = adapter_of(model, processor, max_prompt_length=needed - 1)
    with pytest.raises(ValueError, match=f"prompt 0 has {needed} tokens, {images} of them im"):
        tight.encode([prompt], [["one"]], generators=[])
    with pytest.raises(ValueError, match=f"at least {needed}"):
        tight.sample(model, [prompt], group_size=1, generators=generators(1))
    adapter_of(model, processor, max_prompt_length=needed).encode(
        [prompt], [["one"]], generators=[]
    )


def test_a_bare_string_puts_the_pictures_first(family):
    model, processor = family
    adapter = adapter_of(model, processor)
    spelled = asked("describe the picture", "red", "blue")
    bare = Prompt(content="describe the picture", images=spelled.images)
    written = Prompt(
        content=processor.image_token + " describe the picture", images=spelled.images[:1]
    )
    ids = adapter.static_of([spelled, bare, asked("describe the picture", "red"), written])[
        "prompt_ids"
    ]
    assert torch.equal(ids[0], ids[1])
    assert (ids[2] == processor.image_token_id).sum() == (ids[3] == processor.image_token_id).sum()


def test_generation_leaves_no_trace_in_scoring(family, prompts):
    """Qwen's models remember position offsets of the last call; they must not leak."""
    model, processor = family
    adapter = adapter_of(model, processor)
    trajectory = adapter.encode(prompts, ANSWERS, generators=generators(4))
    texts = adapter.encode(prompts[1:2], [["one two"]], generators=generators(1))
    before = [adapter.scores(model, t).log_probs for t in (trajectory, texts)]
    adapter.sample(model, prompts[2:], group_size=3, generators=generators(2))
    for value, found in zip(before, (trajectory, texts), strict=True):
        assert torch.equal(value, adapter.scores(model, found).log_probs)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_dropout_is_off_in_scoring(name, prompts):
    model, processor = FAMILIES[name](dropout=0.5)
    adapter = adapter_of(model, processor)
    trajectory = adapter.encode(prompts, ANSWERS, generators=generators(4))
    first = adapter.scores(model, trajectory).log_probs
    assert torch.equal(first, adapter.scores(model, trajectory).log_probs)


@pytest.fixture
def folder(family, tmp_path):
    """The model and its processor in the layout of `from_pretrained`."""
    model, processor = family
    model.save_pretrained(str(tmp_path / "base"))
    processor.save_pretrained(str(tmp_path / "base"))
    return str(tmp_path / "base")


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_what_is_saved_is_what_plain_libraries_load(folder, tmp_path, lora, prompts):
    """Logits of transformers (+ peft) on the saved folder, fed by its own processor."""
    policy = LVLMPolicy(model=folder, lora=lora, max_new_tokens=6).load()
    assert isinstance(policy.adapter, Adapter)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    policy.save(tmp_path / "out")
    if lora is None:
        plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    else:
        base = AutoModelForImageTextToText.from_pretrained(folder)
        plain = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    text = processor.apply_chat_template(list(prompts[2].content), add_generation_prompt=True)
    inputs = processor(text=[text], images=[list(prompts[2].images)], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, policy.model(**inputs).logits)
    trajectory = policy.sample(prompts[2:3], group_size=1, generators=generators(1))
    assert torch.equal(trajectory.static["prompt_ids"][0], inputs["input_ids"][0])


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_the_vision_tower_is_frozen_and_stays_as_it_was(folder, lora, prompts):
    """Nor does it carry a LoRA, unless asked for."""
    policy = LVLMPolicy(model=folder, lora=lora).load()
    tower = vision_tower(policy.model)
    assert not any(p.requires_grad for p in tower.parameters())
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=0.1)
    trajectory = policy.adapter.encode(prompts, ANSWERS, generators=generators(4))
    first = policy.scores(trajectory).log_probs
    first.sum().backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in tower.state_dict().items())
    assert all(p.grad is None for p in tower.parameters())
    assert not torch.allclose(policy.scores(trajectory).log_probs, first)
    trained = LVLMPolicy(model=folder, lora=lora, train_vision_tower=True).load()
    assert any(p.requires_grad for p in vision_tower(trained.model).parameters())


ORDER = """{% for m in messages %}{% for p in m['content'] -%}
{{ '<image>' if p['type'] == 'image' else p['text'] }}
{%- endfor %}{% endfor %}"""
FIRST = """{% for m in messages %}
{%- for p in m['content'] if p['type'] == 'image' %}<image>{% endfor %}
{%- for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}
{%- endfor %}"""


def test_a_template_that_moves_pictures_is_noticed(tmp_path, caplog):
    """Labels such as "picture one:" would stand beside nothing; another template can be given."""
    policy = LVLMPolicy(chat_template=FIRST).load()
    assert "moves the pictures" in caplog.text
    assert not keeps_order(policy.adapter.processor)
    caplog.clear()
    file = tmp_path / "template.jinja"
    file.write_text(ORDER)
    policy = LVLMPolicy(chat_template=str(file)).load()
    assert "moves the pictures" not in caplog.text
    policy.save(tmp_path / "saved")
    assert "'<image>' if" in (tmp_path / "saved" / "chat_template.jinja").read_text()
    with pytest.raises(ValueError, match="neither a Jinja template nor a file"):
        LVLMPolicy(chat_template="no/such/file").load()


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_keep_the_order_of_parts(family):
    _, processor = FAMILIES[family]()
    assert keeps_order(processor)


def test_the_template_of_the_guide_keeps_the_order():
    guide = Path(__file__).parents[2] / "docs/guides/mia_dpo.md"
    (template,) = re.findall(r"```jinja\n(.*?)```", guide.read_text("utf-8"), flags=re.DOTALL)
    processor = LVLMPolicy(chat_template=template).load().adapter.processor
    assert keeps_order(processor)
    asked = {
        "role": "user",
        "content": [
            {"type": "text", "text": "Image1:"},
            {"type": "image"},
            {"type": "text", "text": "What?"},
        ],
    }
    text = processor.apply_chat_template([asked], add_generation_prompt=True)
    assert text == "USER: Image1:<image>What? ASSISTANT:"
    said = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    text = processor.apply_chat_template([asked, said])
    assert text == "USER: Image1:<image>What? ASSISTANT: A cat.</s>"
