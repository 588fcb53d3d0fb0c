"""Write a policy as a package that other runtimes load; see :mod:`flowpolicy.policy.package` for the folder."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowpolicy.core.checkpoint import MANIFEST
from flowpolicy.core.config import encode
from flowpolicy.core.errors import ConfigError, FlowPolicyError, MissingExtraError
from flowpolicy.core.files import flush, read_json, require_free, sha256, write_json, write_text
from flowpolicy.core.seed import numpy_generator
from flowpolicy.core.spec import library_versions, save_contract
from flowpolicy.nets.layers import whole_operators
from flowpolicy.policy.actor import KINDS
from flowpolicy.policy.engines import aotinductor, eager, numpy_graph, onnx_runtime
from flowpolicy.policy.engines.engine import TOLERANCE, Program
from flowpolicy.policy.graph import ActGraph
from flowpolicy.policy.package import HEADER, SCHEMA, Format, is_package, open_package, read_manifest
from flowpolicy.policy.policy import Policy

SAMPLES = 16
"""Random decisions per batch size that an exported file must reproduce before it is published."""


def export(
    policy: Policy,
    to: Format,
    folder: Path,
    *,
    nfe: int | None = None,
    batches: Sequence[int] = (1,),
    threads: int = 1,
    source: str = "",
    overwrite: bool = False,
) -> float:
    """Write a package of ``policy`` and publish it whole once it has reproduced random decisions.

    Args:
        policy: on the CPU.
        to: 'onnx' for ONNX Runtime, 'pt2' for AOTInductor, 'numpy' for NumPy alone.
        folder: new; or a package, whose files this would write again, or that is to be replaced.
        nfe: network evaluations per chunk; the contract's number unless given.
        batches: batch sizes to write graphs for; the NumPy engine takes any other row by row.
        threads: threads that the code of 'pt2' is compiled for.
        source: where the policy comes from, for the card.
        overwrite: replace another package in ``folder``; files that no export wrote are never touched.

    Returns:
        Largest difference from the eager policy, in normalised action units.

    Raises:
        ConfigError: the format cannot hold this policy, or the folder holds something else.
        FlowPolicyError: the exported file computes something else than the policy.

    """
    nfe, batches = policy.contract.nfe if nfe is None else nfe, tuple(sorted(set(batches)))
    if not batches or batches[0] < 1:
        raise ConfigError(f"batch sizes {batches}", expected="one or more, each at least 1")
    _require_own(folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        files = _write_model(policy, to, temporary, nfe, batches, threads)
        header = _header(policy, to, files, nfe, () if to == "numpy" else batches, threads if to == "pt2" else 0)
        header["source"] = source
        save_contract(temporary / "contract.json", policy.contract)
        write_text(temporary / "card.md", "")
        _seal(temporary, header)
        difference = _difference(policy, temporary, to, nfe, batches, threads)
        header["difference"] = difference
        write_text(temporary / "card.md", _card(header, policy))
        _seal(temporary, header)
        if is_package(folder):
            if read_json(folder / MANIFEST) == read_json(temporary / MANIFEST):
                return difference  # the very same files
            require_free(folder, overwrite)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return difference


def _require_own(folder: Path) -> None:
    """Refuse a place that holds what no export wrote: a file, another folder, or a user's files inside a package."""
    if not folder.exists():
        return
    if not folder.is_dir() or (not is_package(folder) and any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty and no export", fix="name a new folder")
    written = {MANIFEST, *read_manifest(folder)} if is_package(folder) else set()
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in written):
        raise ConfigError(
            f"{folder} is an export that holds files of yours: {', '.join(foreign[:3])}",
            fix="move them away, or name a new folder",
        )


def _header(
    policy: Policy, to: Format, files: dict[str, str], nfe: int, batches: Sequence[int], threads: int
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "format": to,
        "nfe": nfe,
        "candidates": policy.shapes.candidates,
        "prefix": policy.shapes.prefix,
        "noise": policy.shapes.law._asdict(),
        "batches": list(batches),
        "threads": threads,
        "files": files,
        "observation": {key: list(spec.shape) for key, spec in policy.contract.spec.observation.items()},
        "tolerance": TOLERANCE,
        "policy": encode(policy.config, KINDS),
        "versions": {**library_versions(), **_onnx_versions(to)},
    }


def _seal(folder: Path, header: dict[str, Any]) -> None:
    write_json(folder / HEADER, header)
    (folder / MANIFEST).unlink(missing_ok=True)
    write_json(folder / MANIFEST, {path.name: sha256(path) for path in sorted(folder.iterdir())})


def _write_model(
    policy: Policy, to: Format, folder: Path, nfe: int, batches: Sequence[int], threads: int
) -> dict[str, str]:
    if to == "numpy" and policy.actor.layout.pictures:
        raise ConfigError(
            "the NumPy engine has no convolutions, and this policy sees pictures",
            expected="onnx, which decides from pictures several times faster than torch",
            fix="--to onnx; needs the extra 'onnx'",
        )
    graph = ActGraph(policy, nfe)
    files = {}
    for batch in sorted({1, *batches}) if to == "numpy" else batches:
        files[str(batch)] = f"batch_{batch}.{'safetensors' if to == 'numpy' else to}"
        path = folder / files[str(batch)]
        if to == "onnx":
            write_onnx(graph, batch, path)
        elif to == "numpy":
            numpy_graph.record(graph, batch, path)
        else:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                aotinductor.write(graph, batch, path)
            finally:
                torch.set_num_threads(before)
    return files


def write_onnx(graph: ActGraph, batch: int, path: Path) -> None:
    """One ONNX file of one batch size, weights inside."""
    try:
        import onnxscript  # noqa: F401, the exporter's own message would not name our extra
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxscript", "onnx") from error
    level, example = logging.root.manager.disable, graph.example(batch)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), whole_operators():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                example,
                str(path),
                input_names=list(graph.names),
                output_names=[onnx_runtime.OUTPUT],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        logging.disable(level)
    _turn_weights(path)


def _turn_weights(path: Path) -> None:
    """Store the weights of linear layers by input: ONNX Runtime then multiplies a single row as fast as it reads them.

    By output, as PyTorch stores them, a decision of 4 x 512 takes 3 % longer (measured).
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    turned: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            flag = next((each for each in node.attribute if each.name == "transB" and each.i and place == 1), None)
            turned.setdefault(name, []).append(flag)
    for tensor in model.graph.initializer:
        flags = turned.get(tensor.name, [None])
        if None not in flags:  # several evaluations share their weights
            value = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
            for flag in flags:
                flag.i = 0
    onnx.save(model, path)


def difference(policy: Policy, program: Program, nfe: int, samples: int = SAMPLES) -> float:
    """Largest difference of a program from the eager policy, in normalised action units, over random decisions.

    Pixels are drawn evenly. States are normal in normalised units, three deviations wide, so that clamps are met too.
    """
    theirs, batch = program.buffers, len(program.buffers.chunk)
    reference = eager.build(policy, nfe, batch, torch.device("cpu"))
    ours, shapes, random = reference.buffers, policy.shapes, numpy_generator(0, "export", "check")
    scaling = {key: policy.normalizer.observation(key) for key in policy.actor.layout.widths}
    action, worst = policy.normalizer.action_scaling, 0.0
    unit, offset = action.scale.numpy(), action.offset.numpy()
    for _ in range(samples):
        for key, view, _shape in shapes.views(ours.obs):
            if words := policy.contract.spec.observation[key].words:
                view[...] = np.eye(len(words), dtype=np.float32)[random.integers(len(words))]
                continue
            affine, width = scaling[key], int(np.prod(view.shape[2:]))
            drawn = 3.0 * random.standard_normal((*view.shape[:2], width)) / affine.scale.numpy()
            view[...] = (drawn + affine.offset.numpy()).reshape(view.shape)
        for pixels in ours.pictures.values():
            pixels[...] = random.integers(0, 256, pixels.shape, np.uint8)
        ours.noise[...] = shapes.law.sample_numpy(ours.noise.shape, random)
        if ours.committed is not None and ours.length is not None:
            ours.committed[...] = offset + random.uniform(-1, 1, ours.chunk.shape) / unit
            ours.length[...] = random.integers(0, shapes.prefix + 1, batch)
        for source, target in zip(ours.inputs, theirs.inputs, strict=True):
            target[...] = source
        program.run()
        reference.run()
        worst = max(worst, float(np.abs((theirs.chunk - ours.chunk) * unit).max()))
    return worst


def _difference(policy: Policy, folder: Path, to: Format, nfe: int, batches: Sequence[int], threads: int) -> float:
    package, worst = open_package(folder), 0.0
    for batch in batches:
        if to == "pt2":
            program = aotinductor.build(package, batch)
        else:
            build = onnx_runtime.build if to == "onnx" else numpy_graph.build
            program = build(package, batch, threads)
        worst = max(worst, difference(policy, program, nfe))
    if not worst <= TOLERANCE:
        raise FlowPolicyError(
            f"the exported {to} model differs from the policy by {worst:.1e} of a normalised action",
            expected=f"at most {TOLERANCE:.0e}",
            fix="use another format, and report this",
        )
    return worst


def _prefix_words(policy: Policy) -> str:
    size, chunk = policy.contract.spec.action.size, policy.contract.chunk
    if not policy.shapes.prefix:
        return ""
    return (
        f" `committed` (b, {chunk}, {size}), actions that are executed meanwhile, and `length` (b,), int64, how many "
        f"they are, 0 to {policy.shapes.prefix}; the chunk begins with them."
    )


def _picture_words(policy: Policy) -> str:
    keys = policy.actor.layout.pictures
    if not keys:
        return ""
    named = ", ".join(f"`{key}`" for key in keys)
    return (
        f" {named}, pictures of their own inputs and not side by side: (b, {policy.contract.history}, height, width, "
        "3) uint8 as the camera gives them, red green blue, rows from the top down; the graph crops and scales them."
    )


def _onnx_versions(to: Format) -> dict[str, str]:
    if to != "onnx":
        return {}
    from importlib import metadata

    return {name: metadata.version(name) for name in ("onnx", "onnxscript", "onnxruntime")}


def _card(header: dict[str, Any], policy: Policy) -> str:
    spec, contract = policy.contract.spec, policy.contract
    inputs = [f"| {key} | {tuple(value.shape)} | {value.units} |" for key, value in spec.observation.items()]
    width = policy.shapes.observation
    return "\n".join(
        [
            f"# {spec.env_id}: {header['format']} model",
            "",
            f"From {header['source'] or 'a policy in memory'}; {policy.parameters_count:,} parameters, "
            f"{header['nfe']} network evaluation(s) per chunk. Batch sizes: {header['batches'] or 'any'}.",
            "",
            f"Inputs: `obs` (b, {contract.history}, {width}), the keys below side by side, oldest first, in the units "
            f"of the environment; `noise` (b x {header['candidates']}, {contract.chunk}, {spec.action.size}), standard "
            f"normal.{_prefix_words(policy)}{_picture_words(policy)} Output: `chunk` (b, {contract.chunk}, "
            f"{spec.action.size}). All float32{' but pictures' if policy.actor.layout.pictures else ''}.",
            "",
            "| observation | shape | units |",
            "|---|---|---|",
            *inputs,
            "",
            f"Action: {spec.action.convention}, frame {spec.action.frame}, {spec.action.units}; rotation "
            f"{spec.action.rotation}; gripper {spec.action.gripper}; {spec.action.rate_hz:g} Hz. "
            f"{contract.execute} of {contract.chunk} actions are executed per decision.",
            "",
            f"Checked against the policy on random observations: differs by at most {header['difference']:.1e} of a "
            f"normalised action (tolerance {header['tolerance']:.0e}).",
            "",
        ]
    )
