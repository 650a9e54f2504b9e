"""A program of the tiny world behind a real HTTP server, as models behind endpoints are asked."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from mmalign.endpoint import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks."""

    system: str
    text: str
    images: tuple[Image.Image, ...]
    body: Mapping[str, Any] = field(repr=False)


Program = Callable[[Asked], str]


@contextmanager
def serving(program: Program) -> Iterator[Endpoint]:
    """An endpoint whose answers ``program`` computes; it asks for no key."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = program(read(body))
            choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
            found = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: what is asked is seen in the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        yield Endpoint(url=url, model="tiny", key_variable=None, retries=0)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def read(body: Mapping[str, Any]) -> Asked:
    """The system message, the text and the pictures of a request."""
    system = "".join(m["content"] for m in body["messages"] if m["role"] == "system")
    (content,) = [m["content"] for m in body["messages"] if m["role"] == "user"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Asked(
        system=system,
        text="".join(part["text"] for part in parts if part["type"] == "text"),
        images=tuple(
            _picture(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"
        ),
        body=body,
    )


def _picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB")
