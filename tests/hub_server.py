"""The hub on loopback, as far as runs need it: repositories, commits, files small and large, tokens."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

import pytest


class HubServer(http.server.ThreadingHTTPServer):
    """Keeps commits of model repositories: ``repos[NAME]`` is a list of (commit, files), the newest last."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repos, self.large, self.token, self.broken, self.asked, self.private = {}, {}, "", "", [], set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo, files):
        """A new commit that holds ``files``, name -> bytes; its number."""
        content = json.dumps([len(self.repos.get(repo, ())), sorted(files)]).encode() + b"".join(files.values())
        number = hashlib.sha1(content).hexdigest()
        self.repos.setdefault(repo, []).append((number, dict(files)))
        return number

    def newest(self, repo):
        """Files of the newest commit."""
        return self.repos[repo][-1][1]


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(b"")

    def do_GET(self):
        self._answer(b"")

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_PUT = do_POST

    def _answer(self, sent):
        hub, path = self.server, urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        hub.asked.append((self.command, path))
        if hub.broken and re.search(hub.broken, path):
            return self._send(503, b"{}")
        if hub.token and not path.startswith("/large/") and self.headers.get("Authorization") != f"Bearer {hub.token}":
            code = {"X-Error-Code": "RepoNotFound"} if self.command in ("GET", "HEAD") else {}
            return self._send(401, b'{"error": "Invalid username or password."}', code)
        for pattern, answer in _ROUTES:
            if found := re.fullmatch(pattern, path):
                return answer(self, hub, sent, *found.groups())
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status, content, headers=None):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _at(self, repo, revision):
        """The commit that a revision names; None, answered, where there is none."""
        known = self.server.repos.get(repo)
        if known is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        named = known if revision in (None, "main") else [one for one in known if one[0] == revision]
        return named[-1] if named else self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def _create(self, hub, sent):
        asked = json.loads(sent)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in hub.repos:
            return self._send(409, json.dumps({"error": "You already created it", "url": f"{hub.url}/{repo}"}).encode())
        if asked.get("visibility") == "private":
            hub.private.add(repo)
        hub.commit(repo, {".gitattributes": b""})
        return self._json({"url": f"{hub.url}/{repo}"})

    def _check(self, hub, sent):
        known = re.search(r"^---\n(.*?)\n---", json.loads(sent)["content"], re.S)
        self._json({"errors": [] if known else [{"message": "no metadata"}], "warnings": []})

    def _info(self, hub, sent, repo, revision=None):
        if one := self._at(repo, revision):
            siblings = [{"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
                        for name, content in one[1].items()]  # fmt: skip
            self._json({"id": repo, "_id": "1", "sha": one[0], "private": False, "disabled": False, "gated": False,
                        "downloads": 0, "likes": 0, "tags": [], "author": "ann", "siblings": siblings})  # fmt: skip

    def _tree(self, hub, sent, repo, revision):
        if one := self._at(repo, revision):
            self._json([{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in one[1].items()])  # fmt: skip

    def _modes(self, hub, sent, repo, revision):
        kinds = {True: "lfs", False: "regular"}
        files = [{"path": each["path"], "uploadMode": kinds[each["path"].endswith((".safetensors", ".mp4", ".png"))],
                  "shouldIgnore": False} for each in json.loads(sent)["files"]]  # fmt: skip
        self._json({"files": files})

    def _batch(self, hub, sent, repo):
        objects = [{"oid": each["oid"], "size": each["size"],
                    "actions": {"upload": {"href": f"{hub.url}/large/{each['oid']}"}}}
                   for each in json.loads(sent)["objects"]]  # fmt: skip
        self._json({"transfer": "basic", "objects": objects})

    def _keep(self, hub, sent, oid):
        if hashlib.sha256(sent).hexdigest() != oid:
            return self._send(400, b"{}")
        hub.large[oid] = sent
        return self._send(200, b"")

    def _commit(self, hub, sent, repo, revision):
        files, parent = dict(hub.newest(repo)), hub.repos[repo][-1][0]
        for line in map(json.loads, sent.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", parent) != parent:
                return self._send(412, b'{"error": "A commit has happened since."}')
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        number = hub.commit(repo, files)
        return self._json({"success": True, "commitOid": number, "commitUrl": f"{hub.url}/{repo}/commit/{number}"})

    def _file(self, hub, sent, repo, revision, name):
        if not (one := self._at(repo, revision)):
            return None
        if name not in one[1]:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        content = one[1][name]
        known = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": one[0]}
        return self._send(200, content, known)


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("/api/repos/create", _Answers._create),
    ("/api/validate-yaml", _Answers._check),
    (f"/api/models/{_REPO}", _Answers._info),
    (f"/api/models/{_REPO}/revision/(.+)", _Answers._info),
    (f"/api/models/{_REPO}/tree/(.+)", _Answers._tree),
    (f"/api/models/{_REPO}/preupload/(.+)", _Answers._modes),
    (f"/api/models/{_REPO}/commit/(.+)", _Answers._commit),
    (f"/{_REPO}.git/info/lfs/objects/batch", _Answers._batch),
    ("/large/(.+)", _Answers._keep),
    (f"/{_REPO}/resolve/([^/]+)/(.+)", _Answers._file),
)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of its own, empty, and a cache of its own."""
    import huggingface_hub
    from huggingface_hub import constants

    from flowpolicy.core.hub_run import fetch_run

    made = HubServer()
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    defaults = huggingface_hub.HfApi.__init__.__defaults__

    def reach(url):
        """Let the library ask there."""
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(huggingface_hub.HfApi.__init__, "__defaults__", (url, *defaults[1:]))

    made.reach = reach
    reach(made.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    fetch_run.cache_clear()
    yield made
    fetch_run.cache_clear()
    made.shutdown()
    made.server_close()
