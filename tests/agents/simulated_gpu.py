"""A GPU without one: tensors that say they are on CUDA and hold no numbers, for a PyTorch that is linked with CUDA.

Everything runs at the level of devices, types and shapes (``torch._subclasses.fake_tensor``): tensors that meet on two
devices fail as they would on a GPU, and so does whoever asks a tensor there for its value, which would make a GPU wait.
"""

import contextlib
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from flowpolicy.agents.base.optimizer import Stepper
from flowpolicy.agents.students.teacher import Teacher
from flowpolicy.flows import goals
from flowpolicy.flows.axes.guidance.choosing import Projection
from flowpolicy.policy.policy import Policy

CUDA = torch.device("cuda", 0)
LINKED = torch.version.cuda is not None


class CudaGenerator(torch.Generator):
    """A generator of the processor that says it is on CUDA; what is drawn there has no value anyway."""

    @property
    def device(self):
        return CUDA


def _moved(module, change, recurse=True):
    """``Module._apply`` that makes new parameters: a real one cannot take up what has no value."""
    for child in module.children():
        child._apply(change)
    for name, value in module._parameters.items():
        if value is not None:
            with torch.no_grad():
                module._parameters[name] = torch.nn.Parameter(change(value.detach()), value.requires_grad)
    for name, value in module._buffers.items():
        if value is not None:
            module._buffers[name] = change(value)
    return module


@contextlib.contextmanager
def simulated_gpu():
    """Inside, ``device='cuda'`` works; yields the mode that makes tensors of it."""
    with (
        # Generators give and take their state in real memory.
        mock.patch.multiple("flowpolicy.agents.base.agent", first_weights=_as_they_come),
        # What a decision checks first is read by the processor, there as here.
        mock.patch.multiple("flowpolicy.policy.policy", first_weights=_as_they_come, require_finite=_trusted),
        mock.patch.multiple("flowpolicy.agents.cloning.flow", load_teacher=_teacher),
        mock.patch.object(goals, "_read", _read),
        mock.patch.object(Projection, "check", _trusted),  # on the processor, before anything is trained
        mock.patch.object(torch.nn.Module, "_apply", _moved),
        mock.patch.object(Stepper, "descend", _descend),
        mock.patch.multiple(torch, _fused_adam_=_stepped, _fused_adamw_=_stepped),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        yield mode


class NoStops(TorchDispatchMode):
    """Raises where a tensor goes between processor and GPU and the processor waits for it, which no capture bears."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            inplace = func is torch.ops.aten.copy_.default
            source = args[1] if inplace else args[0]
            unwaited = kwargs.get("non_blocking", inplace and len(args) > 2 and args[2])
            if source.device.type != result.device.type and not unwaited:
                raise RuntimeError(f"a copy from {source.device.type} to {result.device.type} makes a GPU wait")
        return result


def on_the_gpu(source):
    """A sampler that was made on the processor, with all that it holds moved there."""
    for name, value in vars(source).items():
        if isinstance(value, torch.Tensor):
            setattr(source, name, value.to(CUDA))
        elif isinstance(value, dict):
            setattr(source, name, {k: v.to(CUDA) if isinstance(v, torch.Tensor) else v for k, v in value.items()})
    source.device = source.place = CUDA
    return source


def _as_they_come(*stream):
    return contextlib.nullcontext()


def _read(*goal, read=goals._read):
    with _disable_current_modes():  # once per goal, on the processor
        return read(*goal)


def _trusted(*arguments):
    """No check."""


def _teacher(config, normalizer, device):
    with _disable_current_modes():  # files are read as ever
        policy = Policy.load(config.teacher)
    return Teacher(policy.to(device))


def _stepped(*lists, lr, **options):
    """Adam's kernel, which is unknown there with a tensor as learning rate: what it asks of its arguments."""
    assert {value.device for values in lists for value in values} == {CUDA}
    if isinstance(lr, torch.Tensor):
        assert (lr.device, lr.dtype, lr.numel()) == (CUDA, torch.float32, 1)


def _descend(stepper, loss):
    """Gradients as autograd would lay them down; its threads know of no mode."""
    for _, parameters in stepper.groups.values():
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
