"""The endpoint client against a real HTTP server in a thread."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign import config
from mmalign.config import build, nodes
from mmalign.endpoint import Asker, Endpoint, EndpointError, Question

SECRET = "sk-very-secret"

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


def chat(text: object, *, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()


def ok(text: object) -> Reply:
    return 200, {}, chat(text)


class Server:
    """Answers every request with ``reply(request, how many times its text was asked before)``."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.paths: list[str] = []
        self.busy = self.busiest = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(length))
                with lock:
                    before = sum(r["messages"] == request["messages"] for r in server.requests)
                    server.requests.append(request)
                    server.headers.append(dict(self.headers))
                    server.times.append(time.monotonic())
                    server.paths.append(self.path)
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                try:
                    status, headers, body = reply(request, before)
                finally:
                    with lock:
                        server.busy -= 1
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(body)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except BrokenPipeError:
                    logging.getLogger(__name__).info("the client did not wait")

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


Serve = Callable[[Callable[[dict[str, Any], int], Reply]], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(reply: Callable[[dict[str, Any], int], Reply]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def endpoint(server: Server, **changes: Any) -> Endpoint:
    settings: dict[str, Any] = {"key_variable": None, "backoff": 0.01, "timeout": 5.0, "retries": 2}
    return Endpoint(url=server.url, model="m", **{**settings, **changes})


def asked(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])


def echo(request: dict[str, Any], before: int) -> Reply:
    return ok(f"re {asked(request)}")


def questions(number: int) -> list[Question]:
    return [Question(text=f"q{i}") for i in range(number)]


def test_answers_in_order_and_side_by_side(serve: Serve) -> None:
    """The later a question, the sooner its answer; never more than three at a time."""

    def reply(request: dict[str, Any], before: int) -> Reply:
        time.sleep(0.02 * (6 - int(asked(request)[1:])))
        return echo(request, before)

    server = serve(reply)
    found = endpoint(server, concurrency=3).ask(questions(6))
    assert found == [f"re q{i}" for i in range(6)]
    assert server.busiest == 3
    assert endpoint(server).ask([]) == []


def test_request(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures first, as PNG that decodes to the same pixels; settings; the key as a bearer."""
    monkeypatch.setenv("SOME_KEY", f" {SECRET}\n")
    server = serve(lambda request, before: ok("fine"))
    picture = Image.new("RGB", (3, 2), "red")
    picture.putpixel((1, 1), (1, 2, 3))
    question = Question(text="what?", images=(picture, picture), system="be brief")
    asking = endpoint(server, key_variable="SOME_KEY", top_p=0.5, extra={"seed": 7})
    assert asking.ask([question]) == ["fine"]
    (request,) = server.requests
    system, user = request.pop("messages")
    assert request == {
        "model": "m",
        "temperature": 0.0,
        "top_p": 0.5,
        "max_tokens": 1024,
        "seed": 7,
    }
    assert system == {"role": "system", "content": "be brief"}
    first, second, text = user["content"]
    assert first == second and text == {"type": "text", "text": "what?"}
    head, _, data = first["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    seen = Image.open(BytesIO(base64.b64decode(data)))
    assert seen.format == "PNG" and seen.tobytes() == picture.tobytes()
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert server.paths == ["/v1/chat/completions"]


def test_settings_left_to_the_server(serve: Serve) -> None:
    server = serve(echo)
    assert endpoint(server, temperature=None, max_tokens=None).ask(questions(1)) == ["re q0"]
    assert server.requests[0].keys() == {"model", "messages"}
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_busy_server_is_asked_again(serve: Serve, status: int) -> None:
    server = serve(lambda request, before: (status, {}, b"") if before < 2 else echo(request, 0))
    assert endpoint(server).ask(questions(2)) == ["re q0", "re q1"]
    assert len(server.requests) == 6


def test_back_off_doubles(serve: Serve) -> None:
    """Waits lie in [0.5, 1] x (0.1, 0.2, 0.4) seconds."""
    server = serve(lambda request, before: (500, {}, b"") if before < 3 else echo(request, 0))
    endpoint(server, backoff=0.1, retries=3).ask(questions(1))
    waits = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    for wait, longest in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert longest / 2 <= wait < longest + 0.2


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_goes_first(serve: Serve, form: str) -> None:
    """A second's wait that is asked for, where the back-off would be a hundredth."""

    def reply(request: dict[str, Any], before: int) -> Reply:
        if before:
            return echo(request, before)
        # A date has whole seconds, so two seconds from now are between one and two.
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return 429, {"Retry-After": "1" if form == "seconds" else date}, b"slow down"

    server = serve(reply)
    assert endpoint(server).ask(questions(1)) == ["re q0"]
    assert 0.9 <= server.times[1] - server.times[0] < 2.5


def test_unreadable_retry_after_is_told(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(
        lambda request, before: echo(request, 0) if before else (503, {"Retry-After": "soon"}, b"")
    )
    assert endpoint(server).ask(questions(1)) == ["re q0"]
    assert "'soon' is neither seconds nor a date" in caplog.text


def test_endless_retry_after_is_an_error(serve: Serve) -> None:
    server = serve(lambda request, before: (429, {"Retry-After": "86400"}, b"quota"))
    with pytest.raises(EndpointError, match="asks to wait for 86400 seconds"):
        endpoint(server).ask(questions(1))


def test_failure_names_question_address_status_and_body(serve: Serve) -> None:
    """The first 200 characters of the body, and no more."""

    def reply(request: dict[str, Any], before: int) -> Reply:
        return (500, {}, b"x" * 200 + b"y") if asked(request) == "q1" else echo(request, 0)

    server = serve(reply)
    with pytest.raises(EndpointError) as caught:
        endpoint(server).ask(questions(3))
    said = str(caught.value)
    for part in (
        "questions[1]",
        f"{server.url}/chat/completions",
        "status 500",
        "x" * 200,
        "3 of 3",
    ):
        assert part in said
    assert "y'" not in said
    assert [asked(r) for r in server.requests].count("q1") == 3


@pytest.mark.parametrize("status", [301, 400, 401, 404])
def test_what_waiting_does_not_mend_is_not_repeated(serve: Serve, status: int) -> None:
    server = serve(lambda request, before: (status, {"Location": "/v2"}, b'{"error": "no"}'))
    with pytest.raises(EndpointError, match=rf"status {status}: '\{{\"error\": \"no\"\}}'"):
        endpoint(server).ask(questions(1))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>a web page</html>", "no chat completion.*a web page"),
        (b'{"choices": []}', "no chat completion"),
        (b'["x"]', "no chat completion"),
        (chat(None), "holds no text"),
    ],
)
def test_malformed_responses(serve: Serve, body: bytes, said: str) -> None:
    server = serve(lambda request, before: (200, {}, body))
    with pytest.raises(EndpointError, match=rf"questions\[0\].*{said}"):
        endpoint(server).ask(questions(1))
    assert len(server.requests) == 1


def test_slow_server_times_out(serve: Serve) -> None:
    def reply(request: dict[str, Any], before: int) -> Reply:
        time.sleep(0.4 if before < 1 else 0.0)
        return echo(request, 0)

    server = serve(reply)
    assert endpoint(server, timeout=0.2).ask(questions(1)) == ["re q0"]
    with pytest.raises(EndpointError, match=r"ReadTimeout.*attempt 1 of 1"):
        endpoint(server, timeout=0.2, retries=0).ask([Question(text="another")])


def test_nobody_listens(serve: Serve) -> None:
    server = serve(echo)
    server.close()
    with pytest.raises(EndpointError, match=r"ConnectError.*attempt 2 of 2"):
        endpoint(server, retries=1).ask(questions(1))


def test_cut_answers_are_told(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(
        lambda request, before: (
            (200, {}, chat("half", finish="length")) if asked(request) == "q0" else ok("whole")
        )
    )
    assert endpoint(server).ask(questions(2)) == ["half", "whole"]
    assert "1 of 2 answers reached max_tokens" in caplog.text


# ---- the cache -------------------------------------------------------------------------------


def test_interrupted_job_asks_nothing_twice(serve: Serve, tmp_path: Path) -> None:
    """q2 fails at first; q0 and q1 were answered before and are not asked again."""
    broken = True

    def reply(request: dict[str, Any], before: int) -> Reply:
        return (400, {}, b"") if broken and asked(request) == "q2" else echo(request, 0)

    server = serve(reply)
    asking = endpoint(server, cache=str(tmp_path / "kept"), concurrency=1)
    with pytest.raises(EndpointError, match=r"questions\[2\]"):
        asking.ask(questions(4))
    broken = False
    assert asking.ask(questions(4)) == [f"re q{i}" for i in range(4)]
    counted = [asked(r) for r in server.requests]
    assert [counted.count(f"q{i}") for i in range(4)] == [1, 1, 2, 1]
    assert len(list((tmp_path / "kept").rglob("*.json"))) == 4
    assert not list((tmp_path / "kept").rglob("*.partial"))


def test_equal_questions_share_an_answer_where_there_is_a_cache(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(lambda request, before: ok(f"{asked(request)} {before}"))
    again = [Question(text=text) for text in ("a", "b", "a")]
    assert endpoint(server, cache=str(tmp_path)).ask(again) == ["a 0", "b 0", "a 0"]
    assert sorted(endpoint(server).ask(again)) == ["a 1", "a 2", "b 1"]


def test_whatever_decides_the_answer_is_part_of_its_address(serve: Serve, tmp_path: Path) -> None:
    """One more request for each change, none for the settings of the transport."""
    server = serve(lambda request, before: ok("x"))
    picture = Image.new("RGB", (2, 2), "red")
    other = picture.copy()
    other.putpixel((0, 0), (254, 0, 0))
    base = Question(text="t", images=(picture,))

    def number(question: Question = base, **changes: Any) -> int:
        before = len(server.requests)
        endpoint(server, cache=str(tmp_path), **changes).ask([question])
        return len(server.requests) - before

    assert number() == 1
    assert number() == number(timeout=1.0, retries=0, concurrency=1) == 0
    for question in (
        Question(text="t"),
        Question(text="t", images=(other,)),
        Question(text="t", images=(picture, picture)),
        Question(text="t", images=(picture.resize((4, 1)),)),
        Question(text="t", images=(picture,), system="s"),
    ):
        assert number(question) == 1
    for changes in (
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"max_tokens": 5},
        {"extra": {"seed": 1}},
    ):
        assert number(**changes) == 1
    assert Endpoint(url=server.url, model="n", key_variable=None, cache=str(tmp_path)).ask([base])
    assert number() == 0


def test_a_full_cache_needs_neither_key_nor_server(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(echo)
    asking = endpoint(server, cache=str(tmp_path), key_variable="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", SECRET)
    assert asking.ask(questions(2)) == ["re q0", "re q1"]
    server.close()
    monkeypatch.delenv("SOME_KEY")
    assert asking.ask(questions(2)) == ["re q0", "re q1"]


def test_spoilt_cache_is_an_error(serve: Serve, tmp_path: Path) -> None:
    asking = endpoint(serve(echo), cache=str(tmp_path))
    asking.ask(questions(1))
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")
    with pytest.raises(ValueError, match="is no cached answer"):
        asking.ask(questions(1))


# ---- the key ---------------------------------------------------------------------------------


def test_the_key_appears_nowhere(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in the error, though the server repeats it; not in logs, repr, settings or cache."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SOME_KEY", SECRET)

    def reply(request: dict[str, Any], before: int) -> Reply:
        said = f"{'x' * 190} wrong key {SECRET}".encode()
        return echo(request, 0) if asked(request) == "q0" else (401, {}, said)

    asking = endpoint(serve(reply), key_variable="SOME_KEY", cache=str(tmp_path), concurrency=1)
    with pytest.raises(EndpointError) as caught:
        asking.ask(questions(2))
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    described = json.dumps(build.describe(Asker, asking))
    for text in (str(caught.value), repr(caught.value), caplog.text, repr(asking), kept, described):
        assert SECRET[:5] not in text
    assert "re q0" in kept and "SOME_KEY" in described


@pytest.mark.parametrize(("value", "said"), [("", "is not set"), ("two words", "holds no key")])
def test_wrong_keys(serve: Serve, monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    monkeypatch.setenv("SOME_KEY", value)
    server = serve(echo)
    with pytest.raises(ValueError, match=f"SOME_KEY {said}") as caught:
        endpoint(server, key_variable="SOME_KEY").ask(questions(1))
    assert not server.requests and "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "localhost:8000"}, "must begin with http"),
        ({"url": "ftp://a/v1"}, "must begin with http"),
        ({"url": "http://user:word@a/v1"}, "without user, password or query"),
        ({"url": "http://a/v1?key=word"}, "without user, password or query"),
        ({"url": "http://a/v1/chat/completions/"}, "must not name /chat/completions"),
        ({"extra": {"model": "x"}}, "extra must not hold model"),
        ({"extra": {"temperature": 1}}, "extra must not hold temperature"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"retries": -1}, "retries must be 0 or more"),
        ({"concurrency": 0}, "concurrency 1 or more"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Endpoint(**{"url": "http://a/v1", "model": "m", **changes})
    assert "word@" not in str(caught.value) and "key=word" not in str(caught.value)


def test_as_a_config() -> None:
    text = "{type: endpoint, url: 'http://a/v1', model: m, extra: {seed: 1}, temperature: 1}"
    found = build.build(Asker, nodes.parse(text, name="config"), "judge")
    assert found == Endpoint(url="http://a/v1", model="m", extra={"seed": 1}, temperature=1.0)
    with pytest.raises(config.ConfigError, match="did you mean 'concurrency'"):
        build.build(Asker, nodes.parse("{type: endpoint, concurency: 1}", name="c"), "judge")
