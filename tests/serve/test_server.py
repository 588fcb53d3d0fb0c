"""The server over loopback, when everything is well."""

import dataclasses
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
from websockets.sync.client import connect

from flowpolicy.core.errors import CheckpointError, ConfigError, ServingError
from flowpolicy.core.spec import contract_from
from flowpolicy.serve.client import LateError
from flowpolicy.serve.protocol import pack, unpack
from flowpolicy.serve.server import PolicyServer
from flowpolicy.serve.server_config import ServerConfig, is_loopback

from .conftest import CONTRACT, GOOD, SumEngine, costing, make_model, observe, serving, total, until


@pytest.mark.quick("serve")
def test_a_chunk_is_what_the_engine_says(server):
    obs, noise = observe(), np.zeros((1, 4, 2), np.float32)
    with server.client() as client:
        reply = client.act(obs, 5000, noise=noise)
        assert reply.chunk == pytest.approx(np.full((4, 2), total(obs)), rel=1e-5)
        assert (reply.nfe, reply.checkpoint, reply.id) == (1, "step_1", 0)
        assert client.act(obs, 5000, noise=noise).id == 1


def test_the_contract_travels_whole(server):
    with server.client() as client:
        value = dict(client.contract)
        assert value.pop("schema") == 1
        assert contract_from(value, "hello") == CONTRACT


def test_noise_follows_seed_and_number_whoever_else_is_served(server):
    obs = observe()

    def chunks(seed):
        with server.client(seed=seed) as client:
            return [client.act(obs, 5000).chunk for _ in range(3)]

    first = chunks(7)
    with server.client(seed=1) as other:
        other.act(obs, 5000)
        again = chunks(7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], chunks(8)[0])
    drawn = np.random.default_rng([7, 0]).standard_normal((1, 4, 2), dtype=np.float32)[0]
    assert first[0] - drawn == pytest.approx(np.full((4, 2), total(obs)), abs=1e-5)


def test_committed_actions_come_back_bit_for_bit(server):
    prefix = np.array([[0.1, -0.7], [0.3, 0.2]], np.float32)
    with server.client() as client:
        assert client.prefix == 2
        assert np.array_equal(client.act(observe(), 5000, prefix=prefix).chunk[:2], prefix)


def test_requests_that_come_together_are_computed_together():
    engine = SumEngine()
    with serving(make_model(engine)) as running:
        engine.block, engine.batches = threading.Event(), []
        clients = [running.client() for _ in range(5)]
        threads = [threading.Thread(target=client.act, args=(observe(i), 9000)) for i, client in enumerate(clients)]
        threads[0].start()
        until(lambda: engine.batches == [1])
        for thread in threads[1:]:
            thread.start()
        until(lambda: running.made._dispatcher.waiting == 4)
        engine.block.set()
        for thread in threads:
            thread.join(10)
        assert engine.batches == [1, 4]
        for client in clients:
            client.close()


def test_a_new_checkpoint_takes_over_between_requests_and_a_bad_one_does_not():
    loads = []

    def load():
        outcome = loads.pop()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    obs, noise = observe(), np.zeros((1, 4, 2), np.float32)
    with serving(load=load) as running, running.client() as client:
        loads[:] = [make_model(SumEngine(gain=-1.0), checkpoint="step_2")]
        assert running.call(running.made.reload())
        reply = client.act(obs, 5000, noise=noise)
        assert reply.checkpoint == "step_2"
        assert reply.chunk == pytest.approx(np.full((4, 2), -total(obs)), rel=1e-5)
        other = SumEngine(contract=dataclasses.replace(CONTRACT, history=1))
        for bad in (CheckpointError("weights are missing"), OSError("disk"), make_model(other, checkpoint="step_3")):
            loads[:] = [bad]
            assert not running.call(running.made.reload())
            assert client.act(obs, 5000, noise=noise).checkpoint == "step_2"


def test_a_request_under_way_ends_with_the_old_checkpoint():
    engine, replies = SumEngine(), []
    with serving(make_model(engine), load=lambda: make_model(checkpoint="step_2")) as running:
        engine.block, engine.batches = threading.Event(), []
        with running.client() as client:
            thread = threading.Thread(target=lambda: replies.append(client.act(observe(), 9000)))
            thread.start()
            until(lambda: engine.batches == [1])
            assert running.call(running.made.reload())
            engine.block.set()
            thread.join(10)
            assert replies[0].checkpoint == "step_1"
            assert client.act(observe(), 5000).checkpoint == "step_2"


def fetch(server, path, token=""):
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode()


def test_health_and_metrics(server):
    assert '"status": "ok"' in fetch(server, "/health")
    with server.client() as client:
        client.act(observe(), 5000)
        with pytest.raises(ServingError):
            client.act({}, 5000)
        text = fetch(server, "/metrics")
    for line in (
        'flowpolicy_chunks_total{nfe="1"} 1',
        'flowpolicy_refused_total{code="shape"} 1',
        "flowpolicy_clients 1",
        "flowpolicy_waiting 0",
        'flowpolicy_answer_seconds{quantile="0.99"}',
    ):
        assert line in text


def test_an_address_that_others_reach_needs_a_token():
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 without a token"):
        PolicyServer(make_model(), ServerConfig(host="0.0.0.0"))
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "robot.local")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_client_and_server_import_no_torch():
    code = "import sys, flowpolicy.serve.client, flowpolicy.serve.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_budget_shorter_than_the_policy_is_late_at_once():
    with serving(costing({1: 1.0})) as running, running.client() as client:
        with pytest.raises(LateError, match="late"):
            client.act(observe(), 500)
        assert running.made.metrics.total("late") == 1
        assert client.act(observe(), 5000).chunk.shape == (4, 2)


def test_the_most_evaluations_that_the_budget_allows():
    with serving(costing({1: 1.0, 4: 10.0, 8: 30.0})) as running, running.client() as client:
        assert [client.act(observe(), budget).nfe for budget in (5_000, 20_000, 60_000)] == [1, 4, 8]


def test_a_request_that_was_long_under_way_has_so_much_less_time(server):
    """By the stamps of the client's own clock, against the quickest of its messages."""
    with connect(server.url, compression=None) as raw:
        hello = unpack(raw.recv(5), 1 << 20)
        assert hello["optional"] == ["sent_ms", "instruction"]
        answers = []
        for number, sent in enumerate((1e6, 1e6 - 3000.0, 1e6 - 1000.0)):
            message = {**GOOD, "id": number, "budget_ms": 2000.0, "obs": observe(), "sent_ms": sent}
            raw.send(pack(message))
            answers.append(unpack(raw.recv(5), 1 << 20))
        assert [answer["type"] for answer in answers] == ["chunk", "late", "chunk"]
        assert 1000 <= answers[1]["late_ms"] < 1900
        assert answers[2]["queue_ms"] >= 1000
        raw.send(pack({**GOOD, "obs": observe(), "sent_ms": "now"}))
        assert unpack(raw.recv(5), 1 << 20)["code"] == "malformed"


def test_a_client_stamps_its_requests_for_a_server_that_knows_stamps(server, monkeypatch):
    sent = []
    monkeypatch.setattr("flowpolicy.serve.client.pack", lambda message: sent.append(message) or pack(message))
    with server.client() as client:
        client.act(observe(), 5000)
        del client.hello["optional"]  # as an earlier server greets, which refuses what it does not know
        client.act(observe(), 5000)
    assert ["sent_ms" in message for message in sent] == [True, False]
