"""NumPy alone: the traced graph of ``act``, one NumPy call per operator. For computers without torch and ONNX Runtime.

:func:`record` writes down what torch computes, operator by operator, so that every policy that has a graph can be run;
:func:`build` needs no torch. Whatever depends on weights alone is computed once, when the model is loaded. An
operator that is not in :data:`OPERATORS` refuses the export: add it there, one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.nets.constants import GELU_CUBIC, GELU_SLOPE
from flowpolicy.policy.engines.blas import set_blas_threads
from flowpolicy.policy.engines.engine import Program
from flowpolicy.policy.package import Package

if TYPE_CHECKING:
    from flowpolicy.policy.graph import ActGraph

Array = Any


def _gelu(x: Array, approximate: str = "none") -> Array:
    if approximate != "tanh":
        raise ConfigError("the NumPy engine knows GELU in its tanh form only", fix="--to onnx")
    result = x * x
    result *= GELU_SLOPE / 2 * GELU_CUBIC
    result += GELU_SLOPE / 2
    result *= x
    np.tanh(result, out=result)
    result += 1
    result *= x
    result *= 0.5
    return result


def _layer_norm(x: Array, shape: Sequence[int], weight: Array, bias: Array, eps: float) -> tuple[Array, ...]:
    if x.size == shape[-1]:
        return (_norm_of_one(x, weight, bias, eps),)
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + np.float32(eps))
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias,)


def _norm_of_one(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Of a single row: a third of the time of means along an axis."""
    row = x.reshape(-1)
    centred = row - np.add.reduce(row) / np.float32(row.size)
    centred *= 1 / math.sqrt(float(np.dot(centred, centred)) / row.size + eps)
    if weight is not None:
        centred *= weight.reshape(-1)
    if bias is not None:
        centred += bias.reshape(-1)
    return centred.reshape(x.shape)


def _product(x: Array, w: Array) -> Array:
    """``x w``; of a single row by the routine for vectors, which reads the weights once and rearranges nothing."""
    return np.dot(w.T, x[0])[None] if len(x) == 1 else x @ w


def _softmax(x: Array, dim: int, half_to_float: bool = False) -> Array:
    e = np.exp(x - x.max(dim, keepdims=True))
    return e / e.sum(dim, keepdims=True)


def _slice(x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


def _clamp(x: Array, low: Array = None, high: Array = None) -> Array:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)  # a third of the time of np.clip


def _pad(x: Array, pad: Sequence[int], value: float = 0.0) -> Array:
    widths = [(0, 0)] * (x.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    return np.pad(x, widths, constant_values=value)


def _expand(x: Array, sizes: Sequence[int], implicit: bool = False) -> Array:
    shape = (1,) * (len(sizes) - x.ndim) + x.shape
    return np.broadcast_to(x, [old if new == -1 else new for new, old in zip(sizes, shape, strict=True)])


def _split(x: Array, sizes: Sequence[int], dim: int = 0) -> list[Array]:
    return np.split(x, np.cumsum(sizes)[:-1], axis=dim)


def _index(x: Array, indices: Sequence[Array]) -> Array:
    return x[tuple(slice(None) if index is None else index for index in indices)]


def _mean(x: Array, dims: Sequence[int], keepdim: bool = False, dtype: Any = None) -> Array:
    return x.mean(tuple(dims), keepdims=keepdim, dtype=x.dtype)


def _amount(scale: float) -> Callable[..., Array]:
    return lambda x, y, alpha=1: x + scale * alpha * y if alpha != 1 else (x + y if scale > 0 else x - y)


def _cast(x: Array, dtype: Any = None, **_: Any) -> Array:
    return x if dtype is None else x.astype(dtype)


OPERATORS: dict[str, Callable[..., Any]] = {
    "_softmax": _softmax,
    "_to_copy": _cast,
    "abs": np.abs,
    "add": _amount(1.0),
    "addmm": lambda bias, x, w: _product(x, w) + bias,
    "alias": lambda x: x,
    "amax": lambda x, dims=(), keepdim=False: x.max(tuple(dims) or None, keepdims=keepdim),
    "amin": lambda x, dims=(), keepdim=False: x.min(tuple(dims) or None, keepdims=keepdim),
    "arange": lambda start, end, step=1, dtype=None: np.arange(start, end, step, dtype),
    "argmax": lambda x, dim=None, keepdim=False: x.argmax(dim, keepdims=keepdim),
    "bmm": np.matmul,
    "cat": lambda parts, dim=0: np.concatenate(parts, dim),
    "clamp": _clamp,
    "clone": lambda x, **_: x,
    "constant_pad_nd": _pad,
    "cos": np.cos,
    "div": np.divide,
    "eq": np.equal,
    "exp": np.exp,
    "exp2": np.exp2,
    "expand": _expand,
    "full": lambda shape, value, dtype=None: np.full(shape, value, dtype or np.float32),
    "full_like": lambda x, value, dtype=None, **_: np.full(x.shape, value, dtype or x.dtype),
    "ge": np.greater_equal,
    "gelu": _gelu,
    "getitem": lambda values, place: values[place],
    "gt": np.greater,
    "index": _index,
    "index_select": lambda x, dim, index: np.take(x, index, dim),
    "le": np.less_equal,
    "lift_fresh_copy": lambda x: x,
    "log": np.log,
    "logical_and": np.logical_and,
    "logical_not": np.logical_not,
    "lt": np.less,
    "maximum": np.maximum,
    "mean": _mean,
    "minimum": np.minimum,
    "mm": _product,
    "mul": np.multiply,
    "native_layer_norm": _layer_norm,
    "neg": np.negative,
    "permute": np.transpose,
    "pow": np.power,
    "reciprocal": np.reciprocal,
    "repeat": np.tile,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select": lambda x, dim, place: np.take(x, place, dim),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sign": np.sign,
    "sin": np.sin,
    "slice": _slice,
    "split_with_sizes": _split,
    "sqrt": np.sqrt,
    "squeeze": lambda x, dims: np.squeeze(x, tuple(dims) if isinstance(dims, list) else dims),
    "sub": _amount(-1.0),
    "sum": lambda x, dims=(), keepdim=False, dtype=None: x.sum(tuple(dims) or None, keepdims=keepdim, dtype=x.dtype),
    "tanh": np.tanh,
    "unsqueeze": np.expand_dims,
    "view": lambda x, shape: x.reshape(shape),
    "where": np.where,
}
"""What is known, by torch's name."""

_PLACES = ("device", "layout", "pin_memory", "memory_format", "non_blocking")


def record(graph: ActGraph, batch: int, path: Path) -> None:
    """Write the operators of one batch size and their constants to one safetensors file.

    Raises:
        ConfigError: an operator that NumPy is not told how to compute.

    """
    import torch
    from safetensors.torch import save_file
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    from flowpolicy.nets.layers import whole_operators

    with torch.no_grad(), whole_operators():
        traced = make_fx(graph, decomposition_table=dict(core_aten_decompositions().items()))(*graph.example(batch))
    traced.graph.eliminate_dead_code()
    places: dict[Any, int] = {}
    constants: dict[str, Any] = {}
    steps: list[list[Any]] = []

    def written(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return {"at": places[value]}
        if isinstance(value, (list, tuple)):
            return [written(item) for item in value]
        return {"dtype": str(value).removeprefix("torch.")} if isinstance(value, torch.dtype) else value

    for place, node in enumerate(traced.graph.nodes):
        places[node] = place
        if node.op == "placeholder":
            steps.append(["input"])
        elif node.op == "get_attr":
            constants[f"{place}"] = getattr(traced, node.target).detach().clone().contiguous()
            steps.append(["constant"])
        elif node.op == "output":
            steps.append(["output", written(node.args[0])])
        else:
            name = getattr(node.target, "__name__", "").split(".")[0]
            if name not in OPERATORS:
                raise ConfigError(
                    f"the NumPy engine cannot compute '{node.target}'",
                    fix="--to onnx, or --engine eager with torch",
                )
            named = {key: written(value) for key, value in node.kwargs.items() if key not in _PLACES}
            steps.append([name, written(node.args), named])
    save_file(constants, path, {"graph": json.dumps(steps)})


def build(package: Package, batch: int, threads: int) -> Program:
    """Lay out one decision; a batch size without a graph of its own is computed row by row."""
    if str(batch) not in package.files:
        return _row_by_row(package, batch, build(package, 1, threads))
    from safetensors import SafetensorError
    from safetensors.numpy import load

    set_blas_threads(threads)
    try:
        buffers = package.shapes.buffers(batch)
        content = package.read(batch)
        size = int.from_bytes(content[:8], "little")
        steps = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["graph"])
        run = _laid_out(steps, load(content), buffers.inputs, buffers.chunk)
        run()
    except (SafetensorError, *_WRONG) as error:
        raise CheckpointError(
            f"{package.folder} holds no model of its own description: {error!r}", fix="export the run again"
        ) from error
    return Program(buffers, run)


_WRONG = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, StopIteration)
"""What operators and buffers raise where a graph is not one of its contract."""


def _row_by_row(package: Package, batch: int, one: Program) -> Program:
    """The program of one row, run for every row."""
    buffers = package.shapes.buffers(batch)

    def run() -> None:
        for row in range(batch):
            for whole, part in zip(buffers.inputs, one.buffers.inputs, strict=True):
                each = len(part)  # candidates of a row follow each other
                part[...] = whole[row * each : (row + 1) * each]
            one.run()
            buffers.chunk[row] = one.buffers.chunk[0]

    return Program(buffers, run)


def _laid_out(
    steps: list[list[Any]], constants: dict[str, Array], inputs: Sequence[Array], chunk: Array
) -> Callable[[], None]:
    """One function of no arguments; what does not depend on ``inputs`` is computed here."""
    values: dict[int, Any] = {}
    changing: set[int] = set()
    calls: list[tuple[int, Callable[..., Any], Any, Any, list[Slot]]] = []
    left, end = iter(inputs), 0
    for place, (name, *rest) in enumerate(steps):
        if name == "input":
            values[place] = next(left)
            changing.add(place)
        elif name == "constant":
            values[place] = constants[str(place)]
        elif name == "output":
            end = rest[0]["at"]
        else:
            slots: list[Slot] = []
            arguments, named = (_filled(given, values, changing, slots) for given in rest)
            if slots:
                changing.add(place)
                calls.append((place, OPERATORS[name], arguments, named, slots))
            else:
                values[place] = OPERATORS[name](*arguments, **named)

    def run() -> None:
        for place, call, arguments, named, slots in calls:
            for holder, key, source in slots:
                holder[key] = values[source]
            values[place] = call(*arguments, **named)
        chunk[...] = values[end]

    return run


Slot = tuple[Any, Any, int]
"""A list or dictionary of arguments, a place in it, and the step whose value belongs there in every run."""


def _filled(given: Any, values: dict[int, Any], changing: set[int], slots: list[Slot]) -> Any:
    """Arguments, a list or a dictionary by name, with what is constant in place; the others are added to ``slots``."""
    named = isinstance(given, dict)
    filled: Any = {} if named else [None] * len(given)
    for key, item in given.items() if named else enumerate(given):
        if isinstance(item, list):
            filled[key] = _filled(item, values, changing, slots)
        elif isinstance(item, dict) and item.get("at") in changing:
            slots.append((filled, key, item["at"]))
        elif isinstance(item, dict):
            filled[key] = np.dtype(item["dtype"]) if "dtype" in item else values[item["at"]]
        else:
            filled[key] = item
    return filled
