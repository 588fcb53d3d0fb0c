"""A real S3 server in this process, and a wire to it that can be cut, held or counted."""

import contextlib
import logging
import socket
import threading

import pytest


class Wire:
    """Carries bytes between clients and a server, up to ``budget`` of theirs; then it breaks like a killed server."""

    def __init__(self, port):
        self._target, self.budget, self.carried = ("127.0.0.1", port), None, 0
        self.open = threading.Event()
        self.open.set()
        self._lock, self._pairs = threading.Lock(), []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def cut_after(self, budget):
        """Break every connection once so many bytes have gone to the server, and refuse further ones."""
        with self._lock:
            self.budget, self.carried = budget, 0
        if not budget:
            self._break()
        try:
            yield
        finally:
            with self._lock:
                self.budget, self.carried = None, 0

    @contextlib.contextmanager
    def held(self):
        """Let nothing through meanwhile."""
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()

    def _accept(self):
        while True:
            client, _ = self._listener.accept()
            if self.budget is not None and self.carried >= self.budget:
                client.close()
                continue
            server = socket.create_connection(self._target)
            with self._lock:
                self._pairs.append((client, server))
            threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source, target, counted):
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                self.open.wait()
                if counted:
                    with self._lock:
                        left = None if self.budget is None else max(0, self.budget - self.carried)
                        self.carried += len(block)
                    if left is not None and len(block) >= left:
                        target.sendall(block[:left])
                        self._break()
                        return
                target.sendall(block)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _break(self):
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


@pytest.fixture(scope="module")
def wire():
    """A wire to a server that lives as long as the module."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield Wire(server.get_host_and_port()[1])
    server.stop()


@pytest.fixture
def bucket(wire, monkeypatch, tmp_path, request):
    """Name of a bucket of its own; the cache is in ``tmp_path / 'a'``."""
    s3fs = pytest.importorskip("s3fs")
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}",
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret-of-a-user",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "XDG_CACHE_HOME": str(tmp_path / "a"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 240)  # the server's first answer loads half of botocore
    found = f"bucket-{abs(hash(request.node.nodeid)) % 10**12}"
    store().mkdir(found)
    return found


def store():
    """The library's own view of the server."""
    import os

    import fsspec

    return fsspec.filesystem("s3", use_listings_cache=False, endpoint_url=os.environ["AWS_ENDPOINT_URL"])
