"""Hub files without a hub, and with one on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import medtransfer as mt
import pytest
import safetensors.torch
import timm
from medtransfer.errors import WeightsError
from medtransfer.models.weights.hub import _answers, fetch_file, weights_folder


def fetch(**options):
    return fetch_file(
        "timm/resnet18.a1_in1k",
        ["model.safetensors"],
        ["resnet18.a1_in1k.safetensors"],
        "the weights",
        46.8,
        **options,
    )


def test_offline_the_answer_comes_at_once_and_says_what_to_bring(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDTRANSFER_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    begun = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        mt.load_backbone("resnet18", weights="imagenet")
    assert time.monotonic() - begun < 2
    for part in (
        "HF_HUB_OFFLINE is set",
        "download model.safetensors of timm/resnet18.a1_in1k (about 47 MB",
        str(tmp_path / "resnet18.a1_in1k.safetensors"),
        "resnet18_a1_0-d63eafa0.pth (SHA-256 begins with d63eafa0)",
        "file:PATH",
    ):
        assert part in str(caught.value)


def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    """A server that takes no connection, and an address from which nothing comes back."""
    monkeypatch.setenv("MEDTRANSFER_WEIGHTS", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for endpoint in (f"http://127.0.0.1:{closed.getsockname()[1]}", "http://192.0.2.1"):
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            begun = time.monotonic()
            with pytest.raises(WeightsError, match="does not answer"):
                fetch()
            assert time.monotonic() - begun < 2


class Sick(BaseHTTPRequestHandler):
    """A hub, or a proxy, in trouble."""

    code = 503

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(self.code)
        self.end_headers()


@pytest.mark.parametrize(("code", "answers"), [(200, True), (404, True), (503, False)])
def test_a_hub_in_trouble_is_not_waited_for(code, answers):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Coded", (Sick,), {"code": code}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert _answers(f"http://127.0.0.1:{server.server_address[1]}") == answers
    server.shutdown()
    server.server_close()


def test_a_hub_that_takes_the_call_and_says_nothing_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        begun = time.monotonic()
        assert not _answers(f"http://127.0.0.1:{mute.getsockname()[1]}")
        assert time.monotonic() - begun < 2


def test_the_way_is_through_the_proxy(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Proxy", (Sick,), {"code": 200}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert _answers("http://hub.invalid")
    monkeypatch.setenv("no_proxy", "hub.invalid")
    assert not _answers("http://hub.invalid")
    server.shutdown()
    server.server_close()


def test_the_folder_for_what_is_brought(monkeypatch, tmp_path):
    monkeypatch.delenv("MEDTRANSFER_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "medtransfer" / "weights"


# In a process of its own, as the hub's client reads its environment once; loads again for every
# line that it is given.
CLIENT = """
import json, sys, medtransfer as mt
from medtransfer.errors import WeightsError
for _ in sys.stdin:
    try:
        net = mt.load_backbone("resnet18", weights="imagenet")
        print(json.dumps([net.weights.origin, net.weights.digest]), flush=True)
    except WeightsError as error:
        print(json.dumps(str(error)), flush=True)
"""


class Mirror(BaseHTTPRequestHandler):
    """As much of a hub as its client asks for."""

    content = b""
    cut = False
    sent = 0

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        if self.path == "/":
            self.send_response(200)
            self.end_headers()
            return
        if not self.path.endswith("/model.safetensors"):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        if body and self.cut and type(self).sent:
            self.send_error(403)  # it broke off, and does not go on
            return
        type(self).sent += body
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(self.content[: len(self.content) // 3] if self.cut else self.content)


@pytest.fixture
def mirror(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), path)
    handler = type("Whole", (Mirror,), {"content": path.read_bytes()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def load(mirror, tmp_path):
    """What a client says of the weights that it was given: where they are from and their digest, or
    why there are none.
    """
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in {"HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"}
    }
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{mirror[0].server_address[1]}",
        "HF_HOME": str(tmp_path / "hub"),
        "MEDTRANSFER_WEIGHTS": str(tmp_path / "brought"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as client:

        def ask():
            client.stdin.write("again\n")
            client.stdin.flush()
            for line in client.stdout:
                if line.startswith(("[", '"')):
                    return json.loads(line)
            raise AssertionError("the client has ended")

        yield ask
        client.stdin.close()


@pytest.mark.process
def test_a_download_that_breaks_off_is_not_used_and_what_a_mirror_gave_is_kept(
    mirror, load, tmp_path
):
    _, handler = mirror
    handler.cut = True
    assert "not to be had from the hub" in load()
    assert not list((tmp_path / "hub").rglob("snapshots/*/*"))
    handler.cut = False
    for part in (tmp_path / "hub").rglob("*.incomplete"):
        assert part.stat().st_size < len(handler.content)
        part.unlink()  # this mirror cannot continue a file
    origin, digest = load()
    assert origin == "timm/resnet18.a1_in1k/model.safetensors"
    assert digest == hashlib.sha256(handler.content).hexdigest()
    # From the cache, though the hub holds it no more.
    handler.content = b"changed"
    assert load() == [origin, digest]
    # A cached file that was damaged is seen, as it is named by its digest.
    blob = next(path for path in (tmp_path / "hub").rglob(digest))
    blob.write_bytes(blob.read_bytes()[:-4] + b"abcd")
    assert "damaged or changed" in load()
