"""The hub, as far as downloads need it, on loopback: resumed, pinned, and never outside its folder."""

import hashlib
import http.server
import json
import threading
import urllib.parse

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.data.hub import LOCK, fetch_hub

pytest.importorskip("huggingface_hub", reason="the extra 'hub'")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "hf://datasets/ann/lift@v1.0"
FILES = {"meta/info.json": b'{"a": 1}', "data/chunk-000/file-000.parquet": np.random.default_rng(0).bytes(300_000)}
LARGE = "data/chunk-000/file-000.parquet"


class Hub(http.server.ThreadingHTTPServer):
    """Speaks of one data set; ``asked`` lists what was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files, self.listed, self.asked, self.drop = dict(FILES), None, [], 0
        self.commit = COMMIT


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        hub, path = self.server, urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if path == "/api/datasets/ann/lift/revision/v1.0":
            return self._send(json.dumps(self._listing()).encode(), {}, body)
        name = path.removeprefix(f"/datasets/ann/lift/resolve/{hub.commit}/")
        if name not in hub.files:
            return self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, body, 404)
        content = hub.files[name]
        known = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": hub.commit}
        return self._send(content, known, body)

    def _listing(self):
        hub, siblings = self.server, []
        for name, content in hub.files.items():
            git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            one = {"rfilename": name, "size": len(content), "blobId": git}
            if name == LARGE:
                one["lfs"] = {
                    "sha256": hashlib.sha256(FILES[LARGE]).hexdigest(),
                    "size": len(FILES[LARGE]),
                    "pointerSize": 130,
                }
            siblings.append(one)
        siblings += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in hub.listed or ()]
        return {"id": "ann/lift", "_id": "1", "sha": hub.commit, "private": False, "disabled": False, "gated": False,
                "downloads": 0, "likes": 0, "tags": [], "author": "ann", "siblings": siblings}  # fmt: skip

    def _send(self, content, headers, body, status=200):
        start = 0
        if (asked := self.headers.get("Range")) and status == 200:
            start, status = int(asked.removeprefix("bytes=").partition("-")[0]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            part = content[start:]
            if self.server.drop and len(part) > 100_000:
                self.server.drop -= 1
                part = part[:100_000]
                self.close_connection = True
            self.wfile.write(part)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    made = Hub()
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"http://127.0.0.1:{made.server_address[1]}"
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(
        huggingface_hub.HfApi.__init__, "__defaults__", (url, *huggingface_hub.HfApi.__init__.__defaults__[1:])
    )
    yield made
    made.shutdown()
    made.server_close()


def test_a_revision_arrives_and_is_pinned(hub, tmp_path):
    seen = []
    place = fetch_hub(NAME, tmp_path, progress=lambda there, whole: seen.append((there, whole)))
    assert place == tmp_path / "ann--lift@v1.0"
    found = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    lock = json.loads(found.pop(LOCK))
    assert found == FILES and lock["commit"] == COMMIT
    assert lock["files"][LARGE] == {"bytes": 300_000, "sha256": hashlib.sha256(FILES[LARGE]).hexdigest()}
    assert seen[-1] == (300_008, 300_008) and [path.name for path in tmp_path.iterdir()] == [place.name]
    asked = len(hub.asked)
    assert fetch_hub(NAME, tmp_path) == place and len(hub.asked) == asked
    (place / LARGE).write_bytes(b"x")
    with pytest.raises(DataError, match="has another content"):
        fetch_hub(NAME, tmp_path)


def test_what_broke_off_goes_on(hub, tmp_path):
    hub.drop, content = 1, hub.files.pop(LARGE)
    hub.files[LARGE] = content[:150_000]
    with pytest.raises(DataError, match="another content"):
        fetch_hub(NAME, tmp_path, pause=0.0)
    assert any(span == "bytes=100000-" for _, _, span in hub.asked)
    hub.files[LARGE] = content
    part = tmp_path / ".ann--lift@v1.0.partial" / ".parts" / hashlib.sha256(LARGE.encode()).hexdigest()
    part.write_bytes(content[:120_000])  # as kill -9 leaves it
    assert not (tmp_path / "ann--lift@v1.0").exists()
    del hub.asked[:]
    place = fetch_hub(NAME, tmp_path, pause=0.0)
    assert (place / LARGE).read_bytes() == FILES[LARGE]
    assert [span for how, path, span in hub.asked if how == "GET" and path.endswith(".parquet")] == ["bytes=120000-"]
    assert not any("/api/" in path for _, path, _ in hub.asked)  # the commit of the first call stays


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../../b", "a\\b", "C:/x", ".cache/x", LOCK, "a\nb", "a//b", ""]
)
def test_names_that_lead_elsewhere_are_refused(hub, tmp_path, name):
    hub.listed = [name]
    with pytest.raises(DataError, match="names the file"):
        fetch_hub(NAME, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_other_content_than_stated_is_refused(hub, tmp_path):
    hub.files[LARGE] = FILES[LARGE][::-1]
    with pytest.raises(DataError, match="another content than the hub says"):
        fetch_hub(NAME, tmp_path)
    assert not (tmp_path / "ann--lift@v1.0").exists()


@pytest.mark.parametrize(
    "name",
    ["hf://datasets/ann", "hf://datasets/../lift", "hf://datasets/a/b@../c", "hf://datasets/a/b c", "hf://datasets/"],
)
def test_names_of_nothing_are_refused(name, tmp_path):
    with pytest.raises(ConfigError):
        fetch_hub(name, tmp_path)


def test_a_data_set_that_is_not_there_is_told(hub, tmp_path):
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch_hub("hf://datasets/ann/other", tmp_path)
