"""``flowpolicy serve RUN``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import read_secret
from flowpolicy.core.ranges import Few, Threads
from flowpolicy.serve.server_config import ServerConfig

if TYPE_CHECKING:
    from flowpolicy.serve.model import Model

DEFAULTS = ServerConfig()
TOKEN = "FLOWPOLICY_TOKEN"  # noqa: S105, the name of the variable


def run(argv: Sequence[str]) -> int:
    """Serve a run."""
    return call(serve, argv, "serve")


def serve(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    config: Annotated[ServerConfig, tyro.conf.arg(name="")] = DEFAULTS,
    nfes: tuple[Few, ...] = (),
    engine: str = "auto",
    threads: Threads = 1,
    token_file: Path | None = None,
    device: str = "cpu",
    instruction: str = "",
) -> None:
    """Serve a policy to robots until SIGTERM or Ctrl-C; SIGHUP, or a newer checkpoint in RUN, reloads.

    GET /health and /metrics answer on the same port. The token is read from --token-file or FLOWPOLICY_TOKEN.

    Args:
        run: run folder (its newest checkpoint, now and later) or checkpoint folder.
        config: options of the server.
        nfes: numbers of network evaluations to choose from, by the time left; the contract's unless given.
        engine: 'auto' takes the faster of 'numpy' and 'eager', ready in seconds. 'onnx' and
            'aotinductor' are built in a process of their own, which takes them longer and is worth it for U-Nets and
            transformers; also 'compile', and on a GPU 'cuda_graph', 'compiled_graph', 'onnx' and 'tensorrt'.
        threads: threads of the engine.
        token_file: file whose content clients must show as their token; required unless --host is this machine.
        device: where the policy computes: cpu or a CUDA device, where 'auto' takes 'cuda_graph'.
        instruction: what is done for robots that do not say, by a policy that was trained on several instructions; the
            only one unless given.

    """
    from flowpolicy.serve.process import serve_until_stopped

    load = _loader(run, nfes, engine, threads, config.max_batch, device, instruction)
    serve_until_stopped(run, load, config, _token(token_file))


def _token(path: Path | None) -> str:
    if path is None:
        return os.environ.get(TOKEN, "")
    token = read_secret(path)
    if len(token) < 16:
        raise ConfigError(
            f"--token-file {path} holds {len(token)} characters",
            expected="at least 16",
            fix=f"python -c 'import secrets; print(secrets.token_urlsafe())' > {path}",
        )
    return token


def _loader(
    run: Path, nfes: tuple[int, ...], engine: str, threads: int, max_batch: int, device: str, instruction: str
) -> Callable[[], Model]:
    """Loads the newest checkpoint and measures it."""
    batches = batch_sizes(max_batch)

    def load() -> Model:
        from flowpolicy.serve.engines import load_engines
        from flowpolicy.serve.model import Model

        engines, checkpoint = load_engines(run, nfes, threads, engine, batches, device)
        return Model.prepare(engines, checkpoint, batches, instruction=instruction)  # type: ignore[arg-type]

    return load


def batch_sizes(most: int) -> list[int]:
    """Sizes of batches that a server is prepared for."""
    return [size for size in (1, 2, 4, 8, 16, 32, 64) if size < most] + [most]
