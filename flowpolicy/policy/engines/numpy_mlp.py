"""NumPy alone, for policies on MLPs: what a robot computer without torch can run.

Constants are multiplied out when the model is loaded, in float64: time features into biases, the
gains of activations into weights. What a layer norm subtracts is taken out of the layers that feed it: the mean
of a residual stream reaches nothing but norms, so the stream is kept at mean zero. Exact but for round-off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.policy.engines.blas import set_blas_threads
from flowpolicy.policy.engines.commitment import Commitment
from flowpolicy.policy.engines.critic import best
from flowpolicy.policy.engines.engine import Program
from flowpolicy.policy.engines.tape import GAIN, Input, Rows, Tape
from flowpolicy.policy.package import Package

TRUNKS = ("mlp", "plain")
Weights = Mapping[str, Float[np.ndarray, "..."]]


def build(package: Package, batch: int, threads: int) -> Program:
    """Load ``model.safetensors`` and lay out one decision."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    set_blas_threads(threads)
    try:
        net = package.policy["net"]["class"]
        if net not in TRUNKS:
            raise ConfigError(f"the NumPy engine cannot run the net '{net}'", expected=" or ".join(TRUNKS))
        weights = {name: value.astype(np.float64) for name, value in load(package.read("any")).items()}
        weights.setdefault(
            "action.limit", np.full_like(weights["action.scale"], np.inf)
        )  # exports before 0.2 have none
        program = _Layout(package, batch, weights).program()
        program.run()  # sizes that do not fit show here
        return program
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{package.folder} holds no model of its own description: {error!r}", fix="export the run again"
        ) from error


class _Layout:
    """Buffers and tape of one policy at one batch size."""

    def __init__(self, package: Package, batch: int, weights: Weights) -> None:
        self.package, self.weights, self.policy = package, weights, package.policy
        self.batch, self.candidates, contract = batch, package.candidates, package.contract
        self.size = contract.chunk * contract.spec.action.size
        observed = contract.history * package.shapes.observation
        self.encoded = int(self.policy["encoder"]["width"])
        self.told = contract.chunk if package.prefix else 0  # which rows are committed
        self.trunk = "net.net.trunk." if package.prefix else "net.trunk."
        self.rows = Tape(batch)  # one row per observation
        self.all = self.rows.widened(batch * self.candidates)  # one row per candidate; the same tape
        # What the first layer sees, side by side: noise, 1, which rows are committed, encoder feature, observations,
        # 1, zeros.
        joint = self.rows.input(self.size + 1 + self.told + self.encoded + observed).whole
        edges = np.cumsum([self.size, 1, self.told, self.encoded, observed, 1])
        noise, one, self.mask, self.feature, self.flat, _, _ = np.split(joint, edges, axis=1)
        one[...] = 1.0
        self.joint, self.condition = joint, joint[:, edges[1] :]
        self.observed = Input(self.flat, joint[:, edges[3] :])
        self.noise = Input(noise, joint[:, : edges[1]]) if self.candidates == 1 else self.all.input(self.size)

    def program(self) -> Program:
        """Everything from the observation to the chunk."""
        contract = self.package.contract
        buffers = self.package.shapes.buffers(self.batch)
        self._observe(buffers.obs.reshape(self.batch, -1))
        if self.told:
            self.commitment = Commitment(self.rows, self.all, buffers, self.weights)
            self.commitment.told(self.mask)
            self.commitment.imposed(buffers.noise.reshape(len(buffers.noise), -1), self.noise.values)
        else:
            buffers = buffers._replace(noise=self.noise.values.reshape(buffers.noise.shape))
        network = self._network(self.trunk, self.weights["times"])
        # A dimension that never varied in the data is clamped to 0: it comes back as its offset, exactly.
        reach = np.minimum(1.0, np.tile(self.weights["action.limit"], contract.chunk))
        ends = self.all.spread(-reach), self.all.spread(reach)
        clamped = self.all.input(self.size)
        actions = self.all.clamp(self._generate(network), *ends, clamped.values)
        if self.policy["decorated"]:
            shift = self._network("decorator.trunk.", np.zeros((1, 0)))
            actions = self.all.clamp(self.all.add(actions, shift(clamped, 0)), *ends)
        if self.policy["critic"] is not None:
            critic = {key: value for key, value in self.weights.items() if key.startswith("critic.")}
            actions = best(self.rows, self.all, self.policy["critic"], critic, self.flat, actions)
        out = buffers.chunk.reshape(self.batch, self.size)
        scale, offset = (np.tile(self.weights[f"action.{name}"], contract.chunk) for name in ("scale", "offset"))
        self.rows.multiply(actions, self.rows.spread(1.0 / scale), out)
        self.rows.add(out, self.rows.spread(offset), out)
        if self.told:
            self.commitment.returned(out)
        return Program(buffers, self.rows.compiled())

    def _observe(self, raw: Rows) -> None:
        """Observations without their offset, clamped; and the encoder's feature, up to the gain."""
        history = self.package.contract.history
        offset, limit = (np.tile(self.weights[f"obs.{name}"], history) for name in ("offset", "limit"))
        rows = self.rows
        rows.add(raw, rows.spread(-offset), self.flat)
        rows.clamp(self.flat, rows.spread(-limit), rows.spread(limit), self.flat)
        if self.encoded:
            first, norm = (f"encoder.project.{index}." for index in (0, 1))
            linear = [_centred(self.weights[first + name]) for name in ("weight", "bias")]
            _require_inputs(linear[0], self.flat.shape[1])
            hidden = rows.product(self.observed.whole, *linear)
            y = rows.norm(hidden, -GAIN * self.weights[norm + "weight"], -GAIN * self.weights[norm + "bias"])
            rows.gelu(y, self.feature)

    def _network(self, prefix: str, times: Float[np.ndarray, "n e"]) -> Callable[[Input, int], Rows]:
        """A function that records one evaluation of the network: (chunks, which evaluation) -> values."""
        weights = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        residual = "inlet.weight" in weights
        inlet, bias = (weights[("inlet." if residual else "layers.0.") + name] for name in ("weight", "bias"))
        inlet, bias = (_centred(inlet), _centred(bias)) if residual else (-GAIN * inlet, -GAIN * bias)
        moving, timed, fixed = np.split(inlet, np.cumsum([self.size, times.shape[1]]), axis=1)
        _require_inputs(fixed, self.told + self.encoded + self.flat.shape[1])
        fixed, biases = fixed.copy(), times @ timed.T + bias
        fixed[:, self.told : self.told + self.encoded] /= -GAIN
        rest = (_residual if residual else _plain)(self.all, weights)
        once = None if self._alone(prefix) else self._repeated(self.rows.product(self.condition, fixed))

        def evaluate(x: Input, index: int) -> Rows:
            if once is not None:
                hidden = self.all.add(self.all.product(x.whole, moving, biases[index]), once)
            elif self.policy["sampler"] in ("direct", "squashed") and not self.told:
                hidden = self.all.product(self.condition, fixed, biases[index])
            else:
                both = np.concatenate([moving, np.zeros((len(moving), 1)), fixed], axis=1)
                hidden = self.all.product(self.joint, both, biases[index])
            value = rest(hidden)
            return self.all.multiply(value, self.commitment.free) if self.told else value

        return evaluate

    def _alone(self, prefix: str) -> bool:
        """Whether a network is evaluated once, on the noise itself: then one product serves noise and condition."""
        return prefix == self.trunk and len(self.weights["times"]) == 1 and self.candidates == 1

    def _repeated(self, x: Rows) -> Rows:
        """Every row of ``x`` for each of its candidates."""
        if self.candidates == 1:
            return x
        out = self.all.buffer(x.shape[1])
        self.rows.call(np.copyto, out.reshape(self.batch, self.candidates, -1), x[:, None])
        return out

    def _generate(self, network: Callable[[Input, int], Rows]) -> Rows:
        """The solvers of :mod:`flowpolicy.flows.solvers`, recorded; evaluation k uses row k of the times."""
        sampler, evaluations, x = self.policy["sampler"], len(self.weights["times"]), self.noise
        if sampler in ("direct", "squashed", "one_step"):
            if self.told:  # without noise, but with what is committed
                self.commitment.only(x.values)
            elif sampler != "one_step":
                x = self.all.input(self.size)
            value = network(x, 0)
            if sampler == "squashed":
                self.all.call(np.tanh, value, value)
            return value
        if sampler == "mip":
            start = self.all.input(self.size)
            return network(self._moved(start, network(start, 0), 1.0), 1)
        steps = evaluations if sampler in ("map", "euler") else evaluations // 2
        for step in range(steps):
            first = network(x, evaluations // steps * step)
            if sampler in ("midpoint", "heun"):
                last = sampler == "midpoint" or step == steps - 1
                second = network(self._moved(x, first, (0.5 if last else 1.0) / steps), 2 * step + 1)
                mean = self.all.full(0.5, self.size)
                first = second if last else self.all.multiply(self.all.add(first, second), mean)
            x = self._moved(x, first, 1.0 / steps)
        return x.values

    def _moved(self, x: Input, slope: Rows, step: float) -> Input:
        if step != 1.0:
            slope = self.all.multiply(slope, self.all.full(step, self.size))
        moved = self.all.input(self.size)
        self.all.add(x.values, slope, moved.values)
        return moved


def _residual(tape: Tape, weights: Weights) -> Callable[[Rows], Rows]:
    """:class:`flowpolicy.nets.mlp.ResidualMLP` behind its first layer; every evaluation uses the same matrices."""
    blocks = sum(key.startswith("blocks.") and key.endswith("norm.weight") for key in weights)
    layers = []
    for prefix in [*(f"blocks.{index}." for index in range(blocks)), "outlet."]:
        norm, linear = (
            [weights[f"{prefix}{kind}.{name}"] for name in ("weight", "bias")] for kind in ("norm", "linear")
        )
        if prefix != "outlet.":
            linear = [_centred(value) for value in linear]
        inner = tape.input(len(norm[0]))
        matrix = tape.matrix(linear[0] / -GAIN, linear[1], inner.whole.shape[1])
        layers.append((-GAIN * norm[0], -GAIN * norm[1], inner, matrix))

    def rest(hidden: Rows) -> Rows:
        for weight, bias, inner, matrix in layers[:-1]:
            tape.gelu(tape.norm(hidden, weight, bias), inner.values)
            hidden = tape.add(hidden, tape.apply(matrix, inner.whole))
        weight, bias, inner, matrix = layers[-1]
        tape.gelu(tape.norm(hidden, weight, bias), inner.values)
        return tape.apply(matrix, inner.whole)

    return rest


def _plain(tape: Tape, weights: Weights) -> Callable[[Rows], Rows]:
    """:class:`flowpolicy.nets.plain.PlainMLP` behind its first layer. Hidden layers hand their gain on."""
    layers, last = [], len(weights) // 2 - 1
    for index in range(1, last + 1):
        weight, bias = weights[f"layers.{index}.weight"], weights[f"layers.{index}.bias"]
        weight, bias = (weight / -GAIN, bias) if index == last else (weight, -GAIN * bias)
        inner = tape.input(weight.shape[1])
        layers.append((inner, tape.matrix(weight, bias, inner.whole.shape[1])))

    def rest(hidden: Rows) -> Rows:
        for inner, matrix in layers:
            tape.gelu(hidden, inner.values)
            hidden = tape.apply(matrix, inner.whole)
        return hidden

    return rest


def _require_inputs(weight: np.ndarray, inputs: int) -> None:
    """Matrices are widened with zeros to what they are multiplied with: one of another size would act on the wrong."""
    if weight.shape[1] != inputs:
        raise ValueError(f"a layer for {weight.shape[1]} inputs, of which there are {inputs}")


def _centred(value: Any) -> np.ndarray:
    """Without the mean over the outputs."""
    return cast(np.ndarray, value - value.mean(0))
