"""A stand-in for the hub: the few answers the client asks for, from folders on disk."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "StandInTokenOfNobody"


@dataclass
class Repository:
    """A model on the stand-in: commits by name, newest under ``main``."""

    folder: Path
    commits: dict[str, str]
    gated: bool = False


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Hub:
    """The server's state, and what it was asked."""

    url: str
    home: Path
    models: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    authorized: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path, *, gated: bool = False) -> str:
        commit = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        self.models[name] = Repository(folder, {"main": commit, commit: commit}, gated)
        return commit

    def run(self, *words: str) -> Done:
        """``vlmc WORDS`` in this process, its streams caught."""
        from vlmc.cli import main

        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(words)
        return Done(code, out.getvalue(), err.getvalue())

    def spawn(self, *words: str, **env: str) -> Done:
        """``vlmc WORDS`` in a process of its own, which reads its hub from the environment."""
        command = [sys.executable, "-c", "import vlmc.cli as c, sys; sys.exit(c.main())"]
        base = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        base |= {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, *words],
            env=base | env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def send(self, status: int, raw: bytes, headers: Mapping[str, str], *, body: bool) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            if body:
                self.wfile.write(raw)

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            hub.requests.append(f"{self.command} {path}")
            token = self.headers.get("Authorization", "")
            if token:
                hub.authorized.append(token)
            parts = path.removeprefix("api/models/").split("/")
            repository = hub.models.get("/".join(parts[:2]))
            if repository is None:
                code = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
                return self.send(404, b"{}", code, body=body)
            api, rest = path.startswith("api/models/"), parts[2:]
            revision = unquote(rest[1]) if len(rest) > 1 else "main"
            commit = repository.commits.get(revision)
            if commit is None:
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
            if api:
                answer = (
                    self.tree(repository)
                    if rest[:1] == ["tree"]
                    else self.info("/".join(parts[:2]), repository, commit)
                )
                json_type = {"Content-Type": "application/json"}
                return self.send(200, json.dumps(answer).encode(), json_type, body=body)
            if repository.gated and token != f"Bearer {TOKEN}":
                code = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
                return self.send(403 if token else 401, b"{}", code, body=body)
            file = repository.folder / "/".join(rest[2:])
            if not file.is_file():
                return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
            raw = file.read_bytes()
            etag = {"ETag": f'"{blob(raw)}"', "X-Repo-Commit": commit}
            return self.send(200, raw, etag, body=body)

        def info(self, name: str, repository: Repository, commit: str) -> dict[str, object]:
            files = [{"rfilename": entry["path"]} for entry in self.tree(repository)]
            return {"id": name, "modelId": name, "sha": commit, "siblings": files, "tags": []}

        def tree(self, repository: Repository) -> list[dict[str, object]]:
            found = sorted(p for p in repository.folder.rglob("*") if p.is_file())
            return [
                {
                    "type": "file",
                    "path": p.relative_to(repository.folder).as_posix(),
                    "size": p.stat().st_size,
                    "oid": blob(p.read_bytes()),
                }
                for p in found
            ]

    return Handler


def blob(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    state = Hub("", tmp_path / "hf-home")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{server.server_port}"
    template = state.url + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(state.home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(state.home / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], int]]) -> None:
    """A safetensors file of zeros: name -> (dtype, shape, bytes)."""
    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(end))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with all its files, of a published model's JSON and next to no weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    for source in (ROOT / "tests" / "data" / "configs" / "llava-1.5-7b").iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", {"w": ("F32", (2, 2), 16)})
    return folder
