"""What a pipeline's frozen parts answer: each question is answered once, and then remembered.

VAE and text encoders never change during a run, and together they are a quarter to a third of the
work of an update. Their answers are kept in memory, up to a number of bytes, or on disk without
limit where a folder is given (see `mmalign.store`), where later epochs and later runs find them.

Questions go through these parts one by one. Floating-point sums differ in their last bits with the
size of a batch, and which questions of a batch are still open depends on what happens to be
remembered: a resumed run, another process or another batch would otherwise get other bits.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign import fingerprints
from mmalign.blame import Refused
from mmalign.diffusion.options import LongPrompts, Options
from mmalign.store import TensorStore

logger = logging.getLogger(__name__)

MEMORY_BYTES = 256 * 2**20
QUIET_BATCHES = 8
CPU = torch.device("cpu")

Entry = dict[str, Tensor]
Embed = Callable[[list[str]], Mapping[str, Tensor]]


def seat(now: torch.device, network: torch.device, quiet: int) -> torch.device:
    """Where a frozen part belongs.

    With the network as soon as it is needed; where it is for some batches; and on the CPU after
    `QUIET_BATCHES` batches in which everything was remembered, so that the accelerator's memory is
    the network's.

    Args:
        now: Where the part is.
        network: Where the network is.
        quiet: Batches since the part was last needed, 0 where it is needed now.
    """
    if quiet == 0:
        return network
    return CPU if quiet >= QUIET_BATCHES else now


class Frozen:
    """Frozen parts of a pipeline and what they have answered.

    Args:
        pipe: The pipeline.
        network: The name of its trained network, whose device the parts come to.
        parts: The names of the components that answer; absent ones are left out.
        settings: What else the answers depend on.
        folder: Where answers are kept on disk, or None to keep the last ones in memory.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        network: str,
        parts: Sequence[str],
        settings: str,
        folder: str | None,
    ) -> None:
        self.pipe = pipe
        self.network = network
        self.names = [name for name in parts if getattr(pipe, name) is not None]
        self.settings = settings
        self.folder = folder
        self.memory: OrderedDict[str, Entry] = OrderedDict()
        self.memory_bytes = 0
        self.quiet = 0
        self._store: TensorStore | None = None

    @property
    def device(self) -> torch.device:
        """The network's; its own `device` would look through all of its modules."""
        network: nn.Module = getattr(self.pipe, self.network)
        return next(network.parameters()).device

    @torch.no_grad()
    def __call__(
        self,
        keys: Sequence[str],
        answer: Callable[[int], Mapping[str, Tensor]],
        *,
        keep: bool = True,
    ) -> Entry:
        """The answers to the questions ``keys``, stacked, on the network's device.

        Args:
            keys: What is asked: hashes of contents. A question that stands here twice is asked
                once.
            answer: Answers the question at the given position, ``[1, ...]`` by name.
            keep: Whether new answers are remembered; no, where nobody will ask again.
        """
        known = {key: self._recall(key) for key in dict.fromkeys(keys)}
        missing = {key: i for i, key in enumerate(keys) if known[key] is None}
        if missing:
            self.settle(needed=True)
            # Within autocast the answers would be of another precision than outside of it.
            with torch.autocast(self.device.type, enabled=False):
                for key, position in missing.items():
                    found = {name: value[0] for name, value in answer(position).items()}
                    known[key] = self._remember(key, found) if keep else found
        else:
            self.settle(needed=False)
        entries = [entry for key in keys if (entry := known[key]) is not None]
        return {
            name: torch.stack([entry[name] for entry in entries]).to(self.device)
            for name in entries[0]
        }

    def settle(self, *, needed: bool) -> None:
        """Bring the parts where they belong now; on a machine without accelerator, nothing."""
        self.quiet = 0 if needed else self.quiet + 1
        for name in self.names:
            part: nn.Module = getattr(self.pipe, name)
            now = next(part.parameters()).device
            target = seat(now, self.device, self.quiet)
            if target != now:
                part.to(target)

    def parts(self) -> dict[str, str]:
        """What the answers depend on, questions apart: see `mmalign.fingerprints`."""
        found = {"settings": self.settings, "code": fingerprints.code_versions()}
        for name in self.names:
            part = getattr(self.pipe, name)
            tensors = list(part.state_dict().items())
            found[name] = type(part).__name__
            found[f"{name} weights"] = fingerprints.weights_key(tensors)
            found[f"{name} dtype"] = fingerprints.dtypes_of(tensors)
        return found

    @property
    def store(self) -> TensorStore | None:
        """The store on disk, opened when it is first asked for: hashing weights takes a while."""
        if self._store is None and self.folder is not None:
            self._store = TensorStore(Path(self.folder), self.parts())
        return self._store

    def _recall(self, key: str) -> Entry | None:
        if self.store is not None:
            return self.store.get(key)
        if key in self.memory:
            self.memory.move_to_end(key)
        return self.memory.get(key)

    def _remember(self, key: str, entry: Entry) -> Entry:
        kept = {name: value.detach().cpu().contiguous().clone() for name, value in entry.items()}
        if self.store is not None:
            self.store.add(key, kept)
            return kept
        self.memory[key] = kept
        self.memory_bytes += _size(kept)
        while self.memory_bytes > MEMORY_BYTES and len(self.memory) > 1:
            _, dropped = self.memory.popitem(last=False)
            self.memory_bytes -= _size(dropped)
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A text encoder's tokenizer.

    Attributes:
        tokenizer: Of transformers.
        limit: Tokens the encoder reads, special ones included.
        encoder: What it is called in messages.
        prepare: What the pipeline does to a text before it is cut into tokens.
    """

    tokenizer: Any
    limit: int
    encoder: str
    prepare: Callable[[str], str] = str

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """All token ids of each text, also those that the encoder will not read."""
        found: list[list[int]] = self.tokenizer([self.prepare(t) for t in texts]).input_ids
        return found

    def describe(self) -> str:
        """How ids become a row: everything but the ids themselves, which are part of a key."""
        tokenizer = self.tokenizer
        return (
            f"{self.encoder}: {type(tokenizer).__name__}, {self.limit} tokens, padded with "
            f"{tokenizer.pad_token_id} on the {tokenizer.padding_side}"
        )


class Texts:
    """Prompts as the network reads them, each distinct one embedded once.

    Args:
        frozen: The text encoders.
        readers: Their tokenizers.
        embed: Texts to tensors whose first axis is the text; called with the encoders in place.
        empty: What stands for no prompt, ``[1, ...]``, likewise; None for an empty text.
        long_prompts: Whether a prompt that is longer than an encoder reads is an error, or is read
            in part, which is counted and said.
    """

    def __init__(
        self,
        frozen: Frozen,
        *,
        readers: Sequence[Reader],
        embed: Embed,
        empty: Callable[[], Mapping[str, Tensor]] | None = None,
        long_prompts: LongPrompts = "error",
    ) -> None:
        self.frozen = frozen
        self.readers = readers
        self.embed = embed
        self.unprompted = empty
        self.long_prompts = long_prompts
        self.truncated: set[str] = set()
        self._empty: Entry | None = None

    def __call__(self, texts: Sequence[str]) -> Entry:
        """The embeddings of ``texts``, row by row.

        Raises:
            Refused: A prompt is too long.
        """
        ids = [reader.ids(texts) for reader in self.readers]
        for reader, of in zip(self.readers, ids, strict=True):
            for number, tokens in enumerate(of):
                if len(tokens) > reader.limit:
                    self._long(reader, texts[number], len(tokens), number)
        keys = [
            fingerprints.content_key([text, [of[i] for of in ids]]) for i, text in enumerate(texts)
        ]
        return self.frozen(keys, lambda position: self.embed([texts[position]]))

    def _long(self, reader: Reader, text: str, length: int, number: int) -> None:
        """Refuse a prompt that would be read in part, or say so once and count it."""
        if self.long_prompts == "error":
            raise Refused(
                "prompt",
                number,
                f" of {length} tokens is too long for {reader.encoder}, which reads "
                f"{reader.limit}; shorten it, filter the data, or set long_prompts=truncate: "
                f"{text[:80]!r}",
            )
        if text not in self.truncated:
            self.truncated.add(text)
            logger.warning(
                "of a prompt of %d tokens %s reads the first %d (%d prompts so far): %r",
                length,
                reader.encoder,
                reader.limit,
                len(self.truncated),
                text[:80],
            )

    def empty(self) -> Entry:
        """What stands for no prompt, ``[1, ...]``, which guidance asks for at every move.

        Kept apart, so that asking for it is no batch without a miss.
        """
        if self._empty is None:
            answer = self.unprompted
            none = fingerprints.content_key(["no prompt"])
            self._empty = self([""]) if answer is None else self.frozen([none], lambda _: answer())
        return {name: value.to(self.frozen.device) for name, value in self._empty.items()}


def texts_by(
    pipe: Any,
    options: Options,
    *,
    parts: Sequence[str] = ("text_encoder",),
    readers: Sequence[Reader],
    embed: Embed,
    network: str = "transformer",
    empty: Callable[[], Mapping[str, Tensor]] | None = None,
    settings: str = "",
) -> Texts:
    """Prompts as a pipeline's text encoders embed them.

    Args:
        pipe: The pipeline.
        options: The run's.
        parts: The encoders.
        readers: Tokenizers whose encoder must read every prompt to its end.
        embed: As in `Texts`.
        network: The component that is trained.
        empty: As in `Texts`.
        settings: What else embeddings depend on, in words.
    """
    described = [reader.describe() for reader in readers] + [settings] * bool(settings)
    frozen = Frozen(
        pipe, network=network, parts=parts, settings="; ".join(described), folder=options.cache
    )
    return Texts(
        frozen, readers=readers, embed=embed, empty=empty, long_prompts=options.long_prompts
    )


def _size(entry: Entry) -> int:
    return sum(value.nbytes for value in entry.values())
