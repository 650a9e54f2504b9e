"""Asking a model behind an OpenAI-compatible chat endpoint: judges, claim checkers, correctors.

    Endpoint(url="http://localhost:8000/v1", model="qwen", key_variable=None).ask(
        [Question(text="What is this?", images=(picture,))]
    )

Answers come in the order of the questions. With a ``cache`` folder every answer is kept as it
arrives, so that a job that was stopped asks nothing twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import httpx2
from tqdm import tqdm

from mmalign import rng
from mmalign.data.images import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

BODY_SHOWN = 200
"""Characters of a response that an error repeats."""
MAX_BACKOFF = 60.0
"""Seconds that a back-off grows to."""
MAX_WAIT = 900.0
"""Seconds beyond which a server's Retry-After is an error, not something to sit out."""
PATH = "/chat/completions"

_log = logging.getLogger(__name__)


class EndpointError(OSError):
    """An endpoint did not answer a question; the message says which, where and what came back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question, which starts a conversation of its own.

    Attributes:
        text: What is asked.
        images: Pictures shown before the text, in order.
        system: The system message; "" for none.
    """

    text: str
    images: tuple[Image, ...] = ()
    system: str = ""


@runtime_checkable
class Asker(Protocol):
    """Whoever answers questions about texts and pictures."""

    def ask(self, questions: Sequence[Question]) -> list[str]:
        """One answer for each question, in order; a question without an answer is an error."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model served over HTTP as OpenAI serves chats (vLLM, SGLang, llama.cpp, hosted ones).

    Attributes:
        url: The base address, such as ``http://localhost:8000/v1``; ``/chat/completions`` is added.
        model: The model's name there.
        key_variable: Environment variable that holds the key, read when asking and never written
            anywhere; None for a server that wants none.
        temperature: Of sampling, 0 for greedy; None leaves it to the server.
        top_p: Probability mass that is sampled from; None leaves it to the server.
        max_tokens: Longest answer; None leaves it to the server.
        extra: Further fields of every request, such as ``{seed: 1}``.
        timeout: Seconds without a sign of life after which an attempt is given up.
        retries: Further attempts after a timeout, a lost connection, or a status 408, 409, 429 or
            5xx.
        backoff: Seconds before the first of them, doubled each time, up to a minute; a server's
            Retry-After goes first.
        concurrency: Questions asked at a time.
        cache: Folder of answers already given, or None. An answer is found again by the model's
            name, the settings of sampling and the question with its pixels. The address does not
            count: use another folder for another server with a model of that name. Equal questions
            share one answer; to draw several, give each a seed (``extra: {seed: 2}``).
    """

    url: str
    model: str
    key_variable: str | None = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    top_p: float | None = None
    max_tokens: int | None = 1024
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 8
    cache: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must begin with http:// or https://, not {self.url!r}")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "url must be a bare address, without user, password or query: it is repeated in "
                "errors; give the key in an environment variable (key_variable)"
            )
        if self.url.rstrip("/").endswith(PATH):
            raise ValueError(f"url {self.url!r} must not name {PATH}, which is added to it")
        clash = sorted({"model", "messages", "stream", *self.settings()} & set(self.extra))
        if clash:
            raise ValueError(f"extra must not hold {', '.join(clash)}: these are set elsewhere")
        for name in ("timeout", "backoff"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0 seconds, not {getattr(self, name)}")
        if self.retries < 0 or self.concurrency < 1:
            raise ValueError("retries must be 0 or more, and concurrency 1 or more")

    @property
    def address(self) -> str:
        """Where questions are posted."""
        return self.url.rstrip("/") + PATH

    def settings(self) -> dict[str, Any]:
        """The settings of sampling that a request names."""
        named = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
        }
        return {key: value for key, value in named.items() if value is not None}

    def ask(self, questions: Sequence[Question]) -> list[str]:
        """The answers, in the order of the questions.

        Args:
            questions: Independent of each other.

        Returns:
            One text for each question.

        Raises:
            EndpointError: A question has no answer after the retries, or the response is no chat
                completion. Answers that arrived are in the cache.
            ValueError: The environment variable of the key is not set, or a cached answer is
                unreadable.
        """
        keys = [_key_of(self, question) for question in questions]
        if self.cache is None:
            found = self._asked(dict(enumerate(zip(questions, keys, strict=True))))
            return [found[i] for i in range(len(questions))]
        known = {k: a for k in dict.fromkeys(keys) if (a := self._cached(k)) is not None}
        first: dict[str, int] = {}
        for i, k in enumerate(keys):
            if k not in known:
                first.setdefault(k, i)
        found = self._asked({i: (questions[i], k) for k, i in first.items()})
        known.update({keys[i]: answer for i, answer in found.items()})
        return [known[k] for k in keys]

    def _key(self) -> str | None:
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ValueError(
                f"the environment variable {self.key_variable} is not set; set it to the key of "
                f"{self.url}, or set key_variable to null for a server that wants none"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"the environment variable {self.key_variable} holds no key: there are spaces or "
                "characters in it that no header may have"
            )
        return key

    def _asked(self, wanted: Mapping[int, tuple[Question, str]]) -> dict[int, str]:
        """The answers by number; the first failure stops the rest."""
        if not wanted:
            return {}
        key = self._key()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx2.Limits(max_connections=self.concurrency)
        stop = threading.Event()
        with (
            httpx2.Client(headers=headers, timeout=self.timeout, limits=limits) as client,
            ThreadPoolExecutor(max_workers=self.concurrency) as pool,
            tqdm(total=len(wanted), desc="asking", unit="question", leave=False) as bar,
        ):
            asking = _Asking(endpoint=self, client=client, secret=key, stop=stop)
            pending: dict[Future[_Answer], int] = {
                pool.submit(asking.answer, number, *entry): number
                for number, entry in wanted.items()
            }
            try:
                done = {}
                for future in as_completed(pending):
                    done[pending[future]] = future.result()
                    bar.update()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        cut = sum(answer.cut for answer in done.values())
        if cut:
            _log.warning(
                "%s: %d of %d answers reached max_tokens and are cut short",
                self.url,
                cut,
                len(done),
            )
        return {number: answer.text for number, answer in done.items()}

    def _cached(self, key: str) -> str | None:
        path = self._cache_file(key)
        if path is None or not path.is_file():
            return None
        try:
            answer = json.loads(path.read_text(encoding="utf-8"))["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no cached answer ({error}); remove it") from error
        return str(answer)

    def _cache_file(self, key: str) -> Path | None:
        return None if self.cache is None else Path(self.cache) / key[:2] / f"{key}.json"

    def _keep(self, key: str, question: Question, answer: str) -> None:
        path = self._cache_file(key)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}.partial")
        entry = {"model": self.model, "question": question.text, "answer": answer}
        partial.write_text(json.dumps(entry), encoding="utf-8")
        partial.replace(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    text: str
    cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """An attempt that may be repeated: what happened, and how long the server asks to wait."""

    what: str
    wait: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """One call of `Endpoint.ask` at work, shared by its threads."""

    endpoint: Endpoint
    client: httpx2.Client
    secret: str | None = field(repr=False)
    stop: threading.Event

    def answer(self, number: int, question: Question, key: str) -> _Answer:
        """Ask until there is an answer, waiting longer each time."""
        body = _body(self.endpoint, question)
        attempts = self.endpoint.retries + 1
        attempt = 0
        while True:
            found = self._attempt(number, body)
            attempt += 1
            if isinstance(found, _Answer):
                self.endpoint._keep(key, question, found.text)
                return found
            wait = self._wait(found, key, attempt)
            if wait > MAX_WAIT:
                raise self._error(number, f"{found.what}; it asks to wait for {wait:.0f} seconds")
            if attempt == attempts or self.stop.wait(wait):
                raise self._error(number, f"{found.what} (attempt {attempt} of {attempts})")

    def _wait(self, failure: _Failure, key: str, attempt: int) -> float:
        """Seconds before the next attempt; a share of the back-off, drawn for each question.

        The share is what keeps questions that failed together from coming back together.
        """
        if failure.wait is not None:
            return failure.wait
        longest = min(self.endpoint.backoff * 2 ** (attempt - 1), MAX_BACKOFF)
        return longest * rng.python_random(key, attempt).uniform(0.5, 1.0)

    def _attempt(self, number: int, body: bytes) -> _Answer | _Failure:
        try:
            response = self.client.post(
                self.endpoint.address, content=body, headers={"Content-Type": "application/json"}
            )
        except httpx2.TransportError as error:
            return _Failure(what=f"no answer ({type(error).__name__}: {error})")
        what = f"status {response.status_code}: {self._safe(response.text)[:BODY_SHOWN]!r}"
        if response.status_code in (408, 409, 429) or response.status_code >= 500:
            return _Failure(what=what, wait=_retry_after(response.headers.get("Retry-After")))
        if response.status_code != 200:
            raise self._error(number, what)
        return self._read(response, lambda why: self._error(number, f"{why}; {what}"))

    def _read(self, response: httpx2.Response, error_of: Callable[[str], EndpointError]) -> _Answer:
        try:
            choice = response.json()["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise error_of("the response is no chat completion") from error
        if not isinstance(text, str):
            raise error_of("the response holds no text")
        return _Answer(text=text, cut=choice.get("finish_reason") == "length")

    def _error(self, number: int, what: str) -> EndpointError:
        return EndpointError(f"questions[{number}]: {self.endpoint.address}: {self._safe(what)}")

    def _safe(self, text: str) -> str:
        """The text without the key, should a server have repeated it."""
        return text if self.secret is None else text.replace(self.secret, "[key]")


def data_uri(image: Image) -> str:
    """The picture as a ``data:`` URI: PNG, so that no pixel changes on the way."""
    buffer = BytesIO()
    to_rgb(image).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _body(endpoint: Endpoint, question: Question) -> bytes:
    content: str | list[dict[str, Any]] = question.text
    if question.images:
        shown = [{"type": "image_url", "image_url": {"url": data_uri(i)}} for i in question.images]
        content = [*shown, {"type": "text", "text": question.text}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if question.system:
        messages.insert(0, {"role": "system", "content": question.system})
    request = {"model": endpoint.model, "messages": messages, **endpoint.settings()}
    return json.dumps({**request, **endpoint.extra}).encode()


def _key_of(endpoint: Endpoint, question: Question) -> str:
    """SHA-256 of everything that decides the answer: model, settings, texts and pixels."""
    settings = {**endpoint.settings(), **endpoint.extra}
    parts = [endpoint.model, settings, question.system, question.text, len(question.images)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for image in question.images:
        pixels = to_rgb(image)
        digest.update(f"{pixels.size}".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None for none."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        # Neither form of the standard: the server's wish is unknown, so our own back-off stands.
        _log.warning("a Retry-After of %r is neither seconds nor a date", value)
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
