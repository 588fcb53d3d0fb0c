"""Downloads from a server on loopback that drops connections, lies about lengths or knows no ranges."""

import contextlib
import hashlib
import http.server
import socket
import threading

import numpy as np
import pytest

from flowpolicy.commands.data import run
from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.data.catalogue import PUBLISHED, Published, find_published
from flowpolicy.data.download import cache_folder, fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /file.hdf5; ``asked`` lists the Range headers that came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.drops = 0  # connections to drop after `serves` bytes
        self.serves = len(CONTENT)
        self.ranges = True
        self.status = 0
        self.content = CONTENT

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/file.hdf5"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_error(server.status)
            return
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if first >= len(server.content):
            self.send_error(416)
            return
        body = server.content[first:]
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.drops:
            server.drops -= 1
            body = body[: server.serves]
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def get(server, folder, sha256=HASH, **options):
    entry = Published("file", server.url, sha256)
    return fetch(entry, folder, **{"pause": 0.0, "timeout": 5.0, **options})


def test_a_file_arrives_whole_and_is_not_asked_for_again(server, tmp_path):
    seen = []
    path = get(server, tmp_path, progress=lambda there, whole: seen.append((there, whole)))
    assert path == tmp_path / "file.hdf5" and path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert get(server, tmp_path) == path
    assert server.asked == [None]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.hdf5"]


def test_dropped_connections_are_resumed_where_they_broke_off(server, tmp_path):
    server.drops, server.serves = 3, 70_000
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-"]


def test_a_part_left_by_a_killed_process_is_resumed(server, tmp_path):
    (tmp_path / "file.hdf5.part").write_bytes(CONTENT[:100_000])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=100000-"]


def test_a_complete_part_needs_no_further_byte(server, tmp_path):
    (tmp_path / "file.hdf5.part").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges, server.drops, server.serves = False, 1, 70_000
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-"]


def test_a_body_that_is_always_truncated_is_given_up_and_kept_for_the_next_call(server, tmp_path):
    server.drops, server.serves, server.ranges = 99, 70_000, False
    with pytest.raises(DataError, match=r"closed after 70000 of 300000 bytes(.|\n)*put it at .*file\.hdf5"):
        get(server, tmp_path, attempts=3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.hdf5.part"]
    server.drops, server.ranges = 0, True
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_hash_removes_the_download(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DataError, match=rf"another content than expected(.|\n)*{HASH}(.|\n)*was removed"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_put_in_place_by_hand_is_checked_and_never_removed(server, tmp_path):
    path = tmp_path / "file.hdf5"
    path.write_bytes(b"another")
    with pytest.raises(DataError, match=r"another content than expected(.|\n)*remove .*file\.hdf5"):
        get(server, tmp_path)
    assert path.read_bytes() == b"another"
    path.write_bytes(CONTENT)
    assert get(server, tmp_path) == get(server, tmp_path, sha256="") == path
    assert server.asked == []


def test_nothing_is_downloaded_without_a_hash(server, tmp_path):
    with pytest.raises(DataError, match=r"not pinned(.|\n)*--sha256(.|\n)*file\.hdf5"):
        get(server, tmp_path, sha256="")
    assert server.asked == []
    assert get(server, tmp_path, sha256="", expected_sha256=HASH.upper()).read_bytes() == CONTENT
    with pytest.raises(DataError, match="another SHA-256 is pinned"):
        get(server, tmp_path, expected_sha256="0" * 64)


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (503, 2)])
def test_errors_of_the_server_name_file_and_place(server, tmp_path, status, asked):
    server.status = status
    with pytest.raises(DataError, match=rf"cannot be downloaded from .*: .*{status}(.|\n)*put it at .*file\.hdf5"):
        get(server, tmp_path, attempts=2)
    assert len(server.asked) == asked


def test_no_network_is_one_clear_error(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        entry = Published("door", f"http://127.0.0.1:{closed.getsockname()[1]}/door.hdf5", HASH)
        with pytest.raises(DataError, match=r"door cannot be downloaded(.|\n)*put it at .*door\.hdf5"):
            fetch(entry, tmp_path, attempts=2, pause=0.0)


def test_the_command_takes_a_hash_and_prints_the_path(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(PUBLISHED, "file", Published("file", server.url))
    run(["download", "file", "--sha256", HASH])
    path = cache_folder() / "file.hdf5"
    assert capsys.readouterr().out == f"{path}\n"
    assert path == tmp_path / "flowpolicy" / "datasets" / "file.hdf5" and path.read_bytes() == CONTENT


def test_the_catalogue_names_the_files_of_both_benchmarks():
    assert find_published("cube-single-play-v0-val").file == "cube-single-play-v0-val.npz"
    assert find_published("door-human-v1").url.endswith("hand_dapg_v1/door-human-v1.hdf5")
    with pytest.raises(ConfigError, match="did you mean 'door-human-v1'"):
        find_published("door-human")
