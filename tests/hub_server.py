"""A small server on the loopback that speaks the Hugging Face hub's API, as far as is needed here.

Repositories with commits of files; files of more than a few bytes named ``*.safetensors`` and
``*.png`` are uploaded as large ones (LFS), all others within the commit, as on the hub.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_token"


class Hub:
    """Repositories, what to do wrong, and what was asked."""

    def __init__(self):
        self.repositories = {}  # name -> [(commit, {file: bytes})]
        self.private = {}
        self.tags = {}  # (name, tag) -> commit
        self.large = {}  # digest -> bytes
        self.fault = {}  # regular expression of "METHOD path" -> status, or "hang"
        self.sizes = {}  # file -> a size to claim
        self.asked = []
        self.readme = []  # contents whose front matter was to be checked

    def add(self, name, files):
        """Commit files to a repository, in place of all others; return the commit."""
        commits = self.repositories.setdefault(name, [])
        text = f"{name} {len(commits)} {sorted(files)}"
        commit = hashlib.sha1(text.encode()).hexdigest()
        commits.append((commit, dict(files)))
        return commit

    def files(self, name, revision="main"):
        """Commit and files of a revision; None without it."""
        commits = self.repositories[name]
        if revision == "main":
            return commits[-1]
        wanted = self.tags.get((name, revision), revision)
        return next((each for each in commits if each[0] == wanted), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None
    url = ""

    def log_message(self, *_):
        pass

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self._any
        raise AttributeError(name)

    def _any(self):
        hub, path = self.hub, urllib.parse.unquote(self.path.split("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{self.command} {path}"
        hub.asked.append(asked)
        for pattern, fault in hub.fault.items():
            if re.search(pattern, asked):
                if fault == "hang":
                    time.sleep(20)
                    self.close_connection = True
                    return
                self._send(fault, {"error": "as the test wants"})
                return
        if asked == "POST /api/validate-yaml":
            hub.readme.append(json.loads(body)["content"])
            self._send(200, {"errors": [], "warnings": []})
        elif asked == "POST /api/repos/create":
            self._create(json.loads(body))
        elif asked.startswith("PUT /large/"):
            hub.large[path.rpartition("/")[2]] = body
            self._send(200, {})
        elif found := re.fullmatch(r"(HEAD|GET) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", asked):
            self._file(*found.groups()[1:])
        elif found := re.fullmatch(r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch", asked):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"\w+ /api/models/([^/]+/[^/]+)/(\w+)/main", asked):
            self._model(found[1], found[2], body)
        else:
            self._send(404, {"error": asked})

    def _signed_in(self):
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _create(self, given):
        name = f"{given['organization']}/{given['name']}"
        if not self._signed_in():
            self._send(401, {}, message="Invalid credentials in Authorization header")
        elif given["organization"] != "me":
            self._send(403, {}, message="no right to create in this namespace")
        elif name in self.hub.repositories:
            self._send(409, {"url": f"{self.url}/{name}"})
        else:
            self.hub.private[name] = given.get("visibility") == "private"
            self.hub.add(name, {".gitattributes": b""})
            self._send(200, {"url": f"{self.url}/{name}"})

    def _model(self, name, what, body):
        commit, files = self.hub.files(name)
        if what == "tree":
            rows = [
                {"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in files.items()
            ]
            self._send(200, rows)
        elif what == "preupload":
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = {p: "lfs" if p.endswith((".safetensors", ".png")) else "regular" for p in paths}
            rows = [
                {"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()
            ]
            self._send(200, {"files": rows})
        elif what == "commit":
            files = dict(files)
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            commit = self.hub.add(name, files)
            url = f"{self.url}/{name}/commit/{commit}"
            self._send(200, {"commitUrl": url, "commitOid": commit})
        else:
            self._send(404, {})

    def _batch(self, given):
        rows = []
        for each in given["objects"]:
            upload = {"href": f"{self.url}/large/{each['oid']}"}
            rows.append({**each, "actions": {"upload": upload}})
        self._send(200, {"transfer": "basic", "objects": rows})

    def _file(self, name, revision, file):
        if name not in self.hub.repositories:
            self._send(401, {}, error="RepoNotFound")
            return
        found = self.hub.files(name, revision)
        if found is None:
            self._send(404, {}, error="RevisionNotFound")
            return
        commit, files = found
        if file not in files:
            self._send(404, {}, error="EntryNotFound", commit=commit)
            return
        data = files[file]
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(self.hub.sizes.get(file, len(data))),
            "Content-Length": str(len(data)),
        }
        self._answer(200, headers, data)

    def _send(self, status, content, *, error="", message="", commit=""):
        data = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        named = {"X-Error-Code": error, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._answer(status, headers | {k: v for k, v in named.items() if v}, data)

    def _answer(self, status, headers, data):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextlib.contextmanager
def serving():
    """A `Hub` and its address while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.block_on_close = True, False
    handler.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub, handler.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
