"""Upload to a hub: a server on loopback that answers as Hugging Face's does, and what comes back from it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from opendetr import load
from opendetr.categories import Categories
from opendetr.config import to_dict
from opendetr.presets import build_model, miniature
from opendetr.weights import ModelCard, save_weights

pytest.importorskip("huggingface_hub")

NAMES = ("red", "white")
TOKEN = "hf_ours"
COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """One writable repository, anna/cells; its files lie in `folder`, and large ones wait in `objects`."""

    folder: Path
    objects: dict[str, bytes]
    made: dict[str, object]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.made.update(json.loads(content))
            self._send({"url": f"http://{self.headers['Host']}/anna/cells", "id": "anna/cells"})
        elif self.path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif self.path == "/api/models/anna/cells/preupload/main":
            self._send({"files": [self._way(file) for file in json.loads(content)["files"]]})
        elif self.path == "/anna/cells.git/info/lfs/objects/batch":
            place = f"http://{self.headers['Host']}/objects/"
            objects = [
                {**item, "actions": {"upload": {"href": place + item["oid"]}}}
                for item in json.loads(content)["objects"]
            ]
            self._send({"transfer": "basic", "objects": objects})
        elif self.path == "/api/models/anna/cells/commit/main":
            self._commit([json.loads(line) for line in content.splitlines()])
        else:
            self._send({}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.objects[self.path.rpartition("/")[2]] = content
        self._send({})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = {file.name: file.read_bytes() for file in self.folder.iterdir()}
        if path == "/api/models/anna/cells/revision/main":
            self._send({"id": "anna/cells", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif path.startswith("/api/models/anna/cells/tree/"):
            self._send([{"type": "file", "path": name, "size": len(x), "oid": "b" * 40} for name, x in files.items()])
        elif path.startswith(f"/anna/cells/resolve/{COMMIT}/") and Path(path).name in files:
            self._send(files[Path(path).name])
        else:
            self._send({"error": "not there"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    @staticmethod
    def _way(file: dict[str, str]) -> dict[str, object]:
        large = file["path"].endswith(".safetensors")
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _commit(self, lines: list[dict[str, dict[str, str]]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (self.folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                content = self.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                (self.folder / value["path"]).write_bytes(content)
        page = f"http://{self.headers['Host']}/anna/cells/commit/{COMMIT}"
        self._send({"success": True, "commitOid": COMMIT, "commitUrl": page})

    def _send(self, answer: object, code: int = 200) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_words: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "repository").mkdir()
    handler = type("Handler", (Hub,), {"folder": tmp_path / "repository", "objects": {}, "made": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_address[1]}"
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture(params=[pytest.param("detr-r50", marks=pytest.mark.slow), "deformable-detr-tiny-panoptic"])
def weights(tmp_path, request):
    torch.manual_seed(0)
    preset = miniature(request.param)
    path = tmp_path / "own.safetensors"
    model = build_model(preset, len(NAMES))
    save_weights(path, model, ModelCard(to_dict(preset), Categories.from_names(NAMES), {}))
    return path


def environment(tmp_path, hub):
    """Large files go the older of the hub's two ways; the hub is asked, whatever is set around the tests."""
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache")}
    return own | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


def opendetr(tmp_path, hub, *words, token=TOKEN):
    """In a process of its own, as the address of the hub is read once."""
    settings = environment(tmp_path, hub) | {"HF_TOKEN": token}
    return subprocess.run(
        [sys.executable, "-m", "opendetr", *map(str, words)], capture_output=True, text=True, check=False,
        env=os.environ | settings,
    )  # fmt: skip


def test_what_is_pushed_loads_from_the_hub(tmp_path, hub, weights):
    done = opendetr(tmp_path, hub, "push", weights, "anna/cells", "--private", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["repository"] == "anna/cells"
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private"
    page = (hub.folder / "README.md").read_text(encoding="utf-8")
    assert ("image-segmentation" in page) == ("panoptic" in page) == ("transformers has masks for DETR only" in page)
    assert 'opendetr.load("hf:anna/cells")' in page and "red, white" in page

    fetched = tmp_path / "fetched.pth"
    code = "d = opendetr.load('hf:anna/cells'); torch.save(d.model.state_dict(), sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", f"import opendetr, sys, torch; {code}", str(fetched)],
        check=True, env=os.environ | environment(tmp_path, hub),
    )  # fmt: skip
    state = torch.load(fetched, weights_only=True)
    for name, value in load(weights).model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(state[name], value, atol=0, rtol=0)


@pytest.mark.parametrize("weights", ["deformable-detr-tiny-panoptic"], indirect=True)
def test_refusals_are_one_line(tmp_path, hub, weights):
    for words, token, expected in (
        (("anna/cells",), "hf_theirs", "log in"),
        (("cells",), TOKEN, "expected owner/name"),
        (("anna/cells", "--offline"), TOKEN, "without --offline"),
    ):
        first = ["--offline"] if "--offline" in words else []
        done = opendetr(tmp_path, hub, *first, "push", weights, *[w for w in words if w != "--offline"], token=token)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and expected in done.stderr, done.stderr
    assert not any(hub.folder.iterdir())
    hub.address = "http://127.0.0.1:9"  # nobody listens there
    done = opendetr(tmp_path, hub, "push", weights, "anna/cells")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "the upload failed" in done.stderr, done.stderr
