"""A Hub on loopback for tests: in memory, the part of the HTTP protocol that huggingface_hub and datasets use here.

Files are addressed as on the Hub (a git blob by its SHA-1, a large file by its SHA-256, which is its ETag as well), so
that the clients' own caches, checksums and "nothing has changed" answers are exercised. Large files arrive by LFS or,
with `xet_folder`, by Xet. Written from the client's side; it has never met the real Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".npz", ".png", ".jpg")
TOKENS = {"hf_write": ("tester", "write"), "hf_read": ("tester", "read"), "hf_nvidia": ("nvidia", "write")}
KINDS = "models|datasets|spaces"
REPO = rf"/api/({KINDS})/([^/]+/[^/]+)"
FILES = r"/(datasets/|spaces/)?([^/]+/[^/]+)"
DATE = "2026-01-01T00:00:00.000Z"

File = tuple[str, Any]  # ("regular", the bytes) or ("lfs", its SHA-256)


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        self.status, self.message, self.headers = status, message, headers or {}
        self.headers |= {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


@dataclass
class Fault:
    """The next `times` requests that match are answered with `status` or, for None, with a closed connection."""

    method: str
    path: str
    status: int | None
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Commit:
    sha: str
    title: str
    files: dict[str, File]


class Repo:
    def __init__(self, kind: str, name: str, private: bool) -> None:
        self.kind, self.name, self.private = kind, name, private
        self.owner = name.partition("/")[0]
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        attributes = ("regular", b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        self.add_commit("main", {".gitattributes": attributes}, [], "initial commit")

    def at(self, revision: str = "main") -> Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def add_commit(self, branch: str, added: dict[str, File], deleted: list[str], title: str) -> Commit:
        files = dict(self.commits[self.branches[branch]].files) if branch in self.branches else {}
        for path in deleted:
            del files[path]
        number = f"{self.kind}{self.name}{len(self.commits)}{time.time_ns()}"
        commit = Commit(hashlib.sha1(number.encode()).hexdigest(), title, files | added)
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit


class Hub:
    """What the server holds: change it between requests, look into it after them.

    Attributes:
        repos: by kind ("models", "datasets", "spaces") and name ("user/name").
        large: content by SHA-256.
        log: (method, path, status) of every request; the status of a closed connection is None.
        faults: what goes wrong, see `Fault`.
    """

    def __init__(self, xet_folder: Path | None = None) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, int | None]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.xet_folder, self.xet = xet_folder, {}  # SHA-256 -> (Xet hash, size)

    def repo(self, name: str, kind: str = "models") -> Repo:
        return self.repos[kind, name]

    def read(self, name: str, path: str, revision: str = "main", kind: str = "models") -> bytes:
        return self.content(self.repo(name, kind).at(revision).files[path])

    def requests(self, method: str, path: str) -> list[tuple[str, str, int | None]]:
        """The requests so far whose path contains `path`."""
        return [entry for entry in self.log if entry[0] == method and path in entry[1]]

    def content(self, file: File) -> bytes:
        kind, value = file
        if kind == "lfs" and value not in self.large:
            self.large[value] = self._read_xet(*self.xet[value])
        return self.large[value] if kind == "lfs" else value

    def describe(self, file: File) -> dict[str, Any]:
        """The entry of a listing; "oid" is the SHA-1 of the blob that git holds."""
        kind, value = file
        if kind == "regular":
            return {"type": "file", "oid": git_oid(value), "size": len(value)}
        size = len(self.large[value]) if value in self.large else self.xet[value][1]
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value}\nsize {size}\n".encode()
        lfs = {"oid": value, "size": size, "pointerSize": len(pointer)}
        return {"type": "file", "oid": git_oid(pointer), "size": size, "lfs": lfs}

    def has_large(self, oid: str) -> bool:
        if oid not in self.large and oid not in self.xet and self.xet_folder:
            self.xet |= read_xet_shards(self.xet_folder)
        return oid in self.large or oid in self.xet

    def _read_xet(self, xet_hash: str, size: int) -> bytes:
        import hf_xet

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "file"
            session = hf_xet.XetSession()
            with session.new_file_download_group(
                endpoint=f"local://{self.xet_folder}", token="t", token_expiry_unix_secs=2**40
            ) as group:
                group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(target))
            return target.read_bytes()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(file: File) -> str:
    return file[1] if file[0] == "lfs" else git_oid(file[1])


def read_xet_shards(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 -> (Xet hash, size) of the files in the shards that hf_xet's file-backed storage has written."""

    def as_text(block: bytes) -> str:
        return "".join(f"{word:016x}" for word in struct.unpack("<4Q", block))

    found = {}
    for path in folder.glob("**/shards/*.mdb"):
        data, offset = path.read_bytes(), 48
        while (file_hash := data[offset : offset + 32]) != b"\xff" * 32:
            flags, segments = struct.unpack("<II", data[offset + 32 : offset + 40])
            sizes = [struct.unpack("<I", data[offset + 48 * i + 36 :][:4])[0] for i in range(1, segments + 1)]
            offset += 48 * (1 + segments + (segments if flags >> 31 & 1 else 0))
            if flags >> 30 & 1:
                found[as_text(data[offset : offset + 32])] = as_text(file_hash), sum(sizes)
                offset += 48
    return found


def front_matter(text: str) -> Any:
    found = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    return yaml.safe_load(found.group(1)) if found else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 2**16
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    # --- one request ---------------------------------------------------------------------------------------------

    def answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        self.body = self.read_body()
        self.base = f"http://{self.headers['Host']}"
        status: int | None = None
        try:
            if self.fails(url.path):
                self.close_connection = True
                return
            with self.hub.lock:
                self.user, self.role = self.who()
                status, content, headers = self.route(url.path)
            self.send(status, content, headers)
        except HubError as error:
            status = error.status
            self.send(status, {"error": error.message}, error.headers)
        finally:
            self.hub.log.append((self.command, self.path, status))

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def fails(self, path: str) -> bool:
        """Whether a fault closes the connection; one with a status is raised."""
        for fault in self.hub.faults:
            if fault.method == self.command and re.search(fault.path, path) and fault.times > 0:
                fault.times -= 1
                if fault.status is None:
                    return True
                raise HubError(fault.status, "a fault of the test", headers=fault.headers)
        return False

    def who(self) -> tuple[str | None, str | None]:
        given = self.headers.get("Authorization")
        if not given:
            return None, None
        if given.removeprefix("Bearer ") not in TOKENS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return TOKENS[given.removeprefix("Bearer ")]

    def route(self, path: str) -> tuple[int, Any, dict[str, str]]:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, function in ROUTES:
            if wanted == method and (found := re.fullmatch(pattern, path)):
                parts = [urllib.parse.unquote(part) if part else "" for part in found.groups()]
                return function(self, *parts)
        raise HubError(404, f"minihub has no {self.command} {path}")

    def send(self, status: int, content: Any, headers: dict[str, str]) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    # --- repositories --------------------------------------------------------------------------------------------

    def repo(self, kind: str, name: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and repo.owner != self.user):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.check_may_write(repo.owner)
        return repo

    def check_may_write(self, owner: str) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if self.role != "write" or owner != self.user:
            raise HubError(403, f"Forbidden: this token may not write under {owner}")

    def create_repo(self) -> Any:
        wanted = self.json()
        kind, owner = wanted.get("type", "model") + "s", wanted.get("organization") or self.user
        self.check_may_write(owner)
        name = f"{owner}/{wanted['name']}"
        url = f"{self.base}/{'' if kind == 'models' else f'{kind}/'}{name}"
        if (kind, name) in self.hub.repos:
            return 409, {"error": "You already created this model repo", "url": url}, {}
        if kind == "spaces" and wanted.get("sdk") not in ("gradio", "docker", "static"):
            raise HubError(400, "a Space needs an SDK")
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repos[kind, name] = Repo(kind, name, private)
        return 200, {"url": url, "name": name}, {}

    def info(self, kind: str, name: str, revision: str = "main") -> Any:
        repo = self.repo(kind, name)
        commit = repo.at(revision or "main")
        card = commit.files.get("README.md")
        metadata = (front_matter(self.hub.content(card).decode()) if card else None) or {}
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        shown = {key: metadata[key] for key in ("pipeline_tag", "library_name") if key in metadata}
        return (
            200,
            {"_id": "0", "id": name, "modelId": name, "author": repo.owner, "sha": commit.sha, "private": repo.private}
            | {"lastModified": DATE, "createdAt": DATE, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
            | {"tags": metadata.get("tags", []), "siblings": siblings, "cardData": metadata, "spaces": []}
            | shown,
            {},
        )

    def create_branch(self, kind: str, name: str, branch: str) -> Any:
        repo = self.repo(kind, name, write=True)
        if branch in repo.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = repo.at(self.json().get("startingPoint") or "main").sha
        return 201, {}, {}

    # --- files in ------------------------------------------------------------------------------------------------

    def validate(self) -> Any:
        errors = []
        try:
            metadata = front_matter(self.json()["content"])
            if metadata is not None and not isinstance(metadata, dict):
                errors.append("YAML metadata must be a mapping")
            for key in ("pipeline_tag", "library_name"):
                if not isinstance((metadata or {}).get(key, ""), str):
                    errors.append(f'"{key}" must be a string')
            for entry in (metadata or {}).get("model-index", []):
                for result in entry["results"]:
                    named = result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]
                    measured = [(metric["type"], float(metric["value"])) for metric in result["metrics"]]
                    if not all(named) or not measured:
                        errors.append('"model-index" lacks values')
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            errors.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return 400 if errors else 200, {"errors": [{"message": text} for text in errors], "warnings": []}, {}

    def preupload(self, kind: str, name: str, revision: str) -> Any:
        files = self.repo(kind, name, write=True).at(revision).files
        answers = []
        for wanted in self.json()["files"]:
            path, present = wanted["path"], files.get(wanted["path"])
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = etag(present) if present else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": answers}, {}

    def lfs_batch(self, prefix: str, name: str) -> Any:
        self.repo(prefix.rstrip("/") or "models", name, write=True)
        objects = []
        for wanted in self.json()["objects"]:
            link = {"href": f"{self.base}/_lfs/{wanted['oid']}"}
            missing = not self.hub.has_large(wanted["oid"])
            objects.append(wanted | ({"actions": {"upload": link, "verify": link}} if missing else {}))
        return 200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def put_large(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "the content has another SHA-256")
        self.hub.large[oid] = self.body
        return 200, {}, {}

    def verify_large(self, oid: str) -> Any:
        if len(self.hub.large.get(oid, b"")) != self.json()["size"]:
            raise HubError(404, "there is no such large file")
        return 200, {}, {}

    def xet_token(self, kind: str, name: str, access: str, _: str) -> Any:
        self.repo(kind, name, write=access == "write")
        if self.hub.xet_folder is None:
            raise HubError(404, "no Xet here: set HF_HUB_DISABLE_XET=1")
        storage, expires = f"local://{self.hub.xet_folder}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": storage, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(expires)}
        return 200, {"casUrl": storage, "accessToken": "t", "exp": expires}, headers

    def commit(self, kind: str, name: str, branch: str) -> Any:
        repo = self.repo(kind, name, write=True)
        added: dict[str, File] = {}
        deleted, title = [], ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                title = value["summary"]
            elif operation["key"] == "file":
                added[value["path"]] = "regular", base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                if not self.hub.has_large(value["oid"]):
                    raise HubError(400, f"there is no large file {value['oid']}")
                added[value["path"]] = "lfs", value["oid"]
            else:
                deleted.append(value["path"])
        pull_request = None
        if "create_pr" in self.query:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            start, branch = repo.at(branch).sha, f"refs/pr/{number}"
            repo.branches[branch] = start
            pull_request = f"{self.base}/{name}/discussions/{number}"
        repo.at(branch)
        sha = repo.add_commit(branch, added, deleted, title).sha
        return (
            200,
            {"commitOid": sha, "commitUrl": f"{self.base}/{name}/commit/{sha}", "pullRequestUrl": pull_request},
            {},
        )

    # --- files out -----------------------------------------------------------------------------------------------

    def tree(self, kind: str, name: str, revision: str, folder: str = "") -> Any:
        repo = self.repo(kind, name)
        commit = repo.at(revision)
        found = self.listing(commit, folder.strip("/"), self.query.get("recursive", "").lower() in ("true", "1"))
        return 200, found, {"X-Repo-Commit": commit.sha}

    def listing(self, commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        below = {path.removeprefix(prefix): file for path, file in commit.files.items() if path.startswith(prefix)}
        if folder and not below:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        parents = {str(parent) for path in below for parent in Path(path).parents} - {"."}
        shown = [path for path in sorted(parents) if recursive or "/" not in path]
        folders = [{"type": "directory", "path": prefix + path, "oid": "0" * 40, "size": 0} for path in shown]
        return folders + [
            {"path": prefix + path, **self.hub.describe(file)}
            for path, file in sorted(below.items())
            if recursive or "/" not in path
        ]

    def resolve(self, prefix: str, name: str, revision: str, path: str) -> Any:
        kind = prefix.rstrip("/") or "models"
        commit = self.repo(kind, name).at(revision)
        file = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.sha}
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        headers |= {"ETag": f'"{etag(file)}"', "Accept-Ranges": "bytes"}
        if file[0] == "regular":
            return self.part_of(file[1], headers)
        storage = self.base.replace("127.0.0.1", "localhost")  # another host, which the token must not reach
        headers |= {"X-Linked-ETag": f'"{file[1]}"', "X-Linked-Size": str(self.hub.describe(file)["size"])}
        if file[1] in self.hub.xet:
            link = f'<{self.base}/api/{kind}/{name}/xet-read-token/{commit.sha}>; rel="xet-auth"'
            headers |= {"X-Xet-Hash": self.hub.xet[file[1]][0], "Link": link}
        return 302, b"", headers | {"Location": f"{storage}/_lfs/{file[1]}"}

    def get_large(self, oid: str) -> Any:
        if self.user:
            raise HubError(400, "a token of the Hub reached the storage")
        return self.part_of(self.hub.content(("lfs", oid)), {"ETag": f'"{oid}"'})

    def part_of(self, content: bytes, headers: dict[str, str]) -> Any:
        """All of a file, or what the request's Range asks for."""
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or not any(wanted.groups()):
            return 200, content, headers
        first, last = (int(text) if text else None for text in wanted.groups())
        if first is None:
            first, last = max(0, len(content) - int(last or 0)), None
        last = len(content) - 1 if last is None else min(last, len(content) - 1)
        if first >= len(content):
            raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
        return 206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}


ROUTES = [
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("GET", REPO, Handler.info),
    ("GET", rf"{REPO}/revision/(.+)", Handler.info),
    ("POST", rf"{REPO}/branch/(.+)", Handler.create_branch),
    ("POST", rf"{REPO}/preupload/(.+)", Handler.preupload),
    ("POST", rf"{REPO}/commit/(.+)", Handler.commit),
    ("GET", rf"{REPO}/xet-(read|write)-token/(.+)", Handler.xet_token),
    ("GET", rf"{REPO}/tree/([^/]+)(/.*)?", Handler.tree),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/_lfs/(\w+)", Handler.put_large),
    ("POST", r"/_lfs/(\w+)", Handler.verify_large),
    ("GET", r"/_lfs/(\w+)", Handler.get_large),
    ("GET", rf"{FILES}/resolve/(refs%2F[^/]+|refs/\w+/\w+|[^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def serve(xet_folder: Path | None = None) -> Iterator[tuple[Hub, str]]:
    """A server on 127.0.0.1 while the block runs: what it holds, and its URL."""
    hub = Hub(xet_folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(url: str, home: Path, token: str | None = "hf_write") -> dict[str, str]:
    """Variables for a fresh process that knows this Hub and no other."""
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers would ask a service outside
    }
    return settings | ({"HF_TOKEN": token} if token else {})
