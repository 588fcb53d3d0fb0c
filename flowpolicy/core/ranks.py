"""Several processes ("ranks") that train one agent: each computes with some rows of every batch.

All of them draw the same whole batch and the same noise; rank r of n takes the rows r, r + n, r + 2n, ... What a loss
computes over rows goes over the rows of all: it calls :func:`mean`, :func:`totals` and :func:`gathered` where it
would call ``mean``, ``sum`` and nothing. So a loss has the same value on every rank, that of the whole batch, whatever
it does with these numbers afterwards, and the mean of the ranks' gradients is the gradient of that value. In a process
that is alone the three are ``mean``, ``sum`` and nothing, bit for bit.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.core.torchrun import RankPlace, rank_place

TIMEOUT = "FLOWPOLICY_RANK_TIMEOUT"
"""Variable of the environment: seconds after which a rank that hears nothing from another one gives up."""
_SECONDS = 300.0
_LOOK = 10
"""Updates on a GPU between two looks at whether somebody asked to stop: each look waits for the GPU."""


class RankLostError(TrainingError):
    """Another rank died, or did not answer in time."""


class Ranks:
    """One process among those that train together.

    Args:
        place: which of them it is.
        device: where it trains; on GPUs messages go by NCCL, on processors by gloo.
        timeout: seconds to wait for another rank.

    """

    def __init__(self, place: RankPlace, device: torch.device | str, timeout: float) -> None:
        self.place, self.rank, self.count, self.timeout = place, place.rank, place.count, timeout
        self._cuda = torch.device(device).type == "cuda"
        if self._cuda:
            _take_gpu(place, torch.device(device))
        from torch.distributed.rendezvous import rendezvous

        limit = datetime.timedelta(seconds=timeout)
        with self._hearing():
            found = next(iter(rendezvous("env://", timeout=limit)))[0]
            # Of this start alone: torchrun --max-restarts starts all anew, beside the notes of the earlier ones.
            self._notes = dist.PrefixStore(f"flowpolicy-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", found)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self._cuda else "gloo",
                store=dist.PrefixStore("group", self._notes),
                rank=self.rank,
                world_size=self.count,
                timeout=limit,
            )
        self.proven = False
        """Whether an update was compared with that of a process alone; until then pictures are read of all rows."""
        self.messages = self.bytes = 0
        """Sums and gathers of updates so far, and the bytes that this rank gave to them."""
        self._asked = self._training = False
        self._turns = 0
        self._stop: Tensor | None = None

    @property
    def leads(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """Its rows of a batch."""
        return slice(self.rank, None, self.count)

    def sum(self, values: Tensor) -> None:
        """Add the values of all, in place; the same bits on every rank."""
        self.messages += 1
        self.bytes += values.numel() * values.element_size()
        with self._hearing():
            dist.all_reduce(values)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all (n b, ...), in the order of the batch that they are of."""
        self.messages += 1
        self.bytes += rows.numel() * rows.element_size()
        found = [torch.empty_like(rows) for _ in range(self.count)]
        with self._hearing():
            dist.all_gather(found, rows)
        return torch.stack(found, 1).flatten(0, 1)

    def average_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients by their mean over all ranks: one message, which also says whether somebody asked to stop.

        After the backward pass as a whole, not beside it: the sums then are of one order whatever the speed of a rank.
        """
        asked = gradients[0].new_full((1,), float(self._asked))
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), asked])
        self.sum(flat)
        flat /= self.count
        sizes = [gradient.numel() for gradient in gradients]
        *parts, self._stop = flat.split([*sizes, 1])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def stopping(self, step: int) -> bool:
        """Whether somebody had asked to stop by the update ``step``; the same answer on every rank."""
        if self._stop is None or (self._cuda and step % _LOOK):
            return False
        return bool(self._stop > 0)

    def averaged(self, row: Mapping[str, float]) -> dict[str, float]:
        """Means over all ranks of numbers for the log."""
        values = torch.tensor(list(row.values()), dtype=torch.float64)
        with self._hearing():
            dist.all_reduce(values)
        return dict(zip(row, (values / self.count).tolist(), strict=True))

    def require_equal(self, what: Mapping[str, str], when: str) -> None:
        """Raise TrainingError unless the texts are the same on every rank.

        Args:
            what: name -> text.
            when: for the error.

        """
        hashes = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") for text in what.values()]
        own = torch.tensor(hashes)
        found = [torch.empty_like(own) for _ in range(self.count)]
        with self._hearing():
            dist.all_gather(found, own)
        for index, name in enumerate(what):
            others = [rank for rank in range(self.count) if found[rank][index] != found[0][index]]
            if others:
                raise TrainingError(
                    f"{name} of rank {', '.join(map(str, others))} differ{'s' if len(others) == 1 else ''} from that "
                    f"of rank 0 {when}",
                    expected="the same data, options, PyTorch and kind of processor on every machine",
                    fix="compare the machines; nothing was written after the last checkpoint",
                )

    def wait(self) -> None:
        """Wait until all are here."""
        with self._hearing():
            dist.all_reduce(torch.zeros(1))

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """Rank 0 does what is in the block before the others: it makes files that they then find.

        However long that takes: whether rank 0 lives is torchrun's business here.
        """
        self._turns += 1
        key = f"done-{self._turns}"
        if not self.leads:
            while not self._notes.check([key]):
                time.sleep(0.05)
        try:
            yield
        finally:
            if self.leads:  # after an error too: the others then find the same one, or that rank 0 has gone
                self._notes.set(key, "1")

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Inside, a request to stop waits for the end of an update, at which all stop together."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def ask(self, *_: Any) -> None:
        """Ask all to stop; before the training just stop."""
        self._asked = True
        if not self._training:
            raise KeyboardInterrupt

    def speaks(self) -> bool:
        """Whether this one is the first that has something to say about the end; the others are silent."""
        try:
            first: bytes = self._notes.compare_set("speaker", "", str(self.rank))
        except (RuntimeError, ValueError):
            return True  # whoever kept the note is gone
        return first == str(self.rank).encode()

    @contextlib.contextmanager
    def _hearing(self) -> Iterator[None]:
        """What PyTorch says about another rank that is gone, in words."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            raise RankLostError(
                f"another of the {self.count} ranks has gone, or did not answer rank {self.rank} within "
                f"{self.timeout:g} s: {str(error).strip().splitlines()[0][:160]}",
                expected="all ranks at work: one that was killed (out of memory?) or that stands still ends the others",
                fix=f"look at the messages of the others above; raise {TIMEOUT}=SECONDS where a rank is only slow",
            ) from error


_current: Ranks | None = None


def current() -> Ranks | None:
    """The ranks that the losses of this moment are shared by; None where the process is alone."""
    return _current


def leads() -> bool:
    """Whether this process writes files and speaks: that of rank 0, and any that is alone."""
    return _current is None or _current.leads


@contextlib.contextmanager
def shared(device: torch.device | str) -> Iterator[Ranks | None]:
    """Train together inside, where torchrun has started several processes; nothing otherwise.

    The first one that ends with an error says so; the others end quietly with the same exit status.
    """
    global _current
    place = rank_place()
    if place is None:
        yield None
        return
    ranks = Ranks(place, device, _timeout())
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        if not ranks.leads:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # rank 0 says the same
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(signal.signal, number, signal.signal(number, ranks.ask))
        _current = ranks
        try:
            yield ranks
        except (KeyboardInterrupt, Exception) as error:
            if ranks.speaks():
                raise
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
        finally:
            _current = None


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, losses are of the rows that they are given, as in a process that is alone."""
    global _current
    before, _current = _current, None
    try:
        yield
    finally:
        _current = before


def mean(values: Tensor) -> Tensor:
    """Mean over all entries of the rows of all ranks."""
    return values.mean() if _current is None else means(values)[0]


def means(*values: Tensor) -> tuple[Tensor, ...]:
    """:func:`mean` of several tensors, in one message."""
    if _current is None:
        return tuple(value.mean() for value in values)
    count = _current.count
    summed = totals(*(value.sum() for value in values))
    return tuple(total / (value.numel() * count) for total, value in zip(summed, values, strict=True))


def totals(*sums: Tensor) -> tuple[Tensor, ...]:
    """Sums over the rows of all ranks, of sums over those of this one; in one message."""
    if _current is None:
        return sums
    flat = torch.cat([part.reshape(-1) for part in sums])
    parts = _Sum.apply(flat).split([part.numel() for part in sums])  # type: ignore[no-untyped-call]
    return tuple(part.view(own.shape) for part, own in zip(parts, sums, strict=True))


def gathered(rows: Tensor) -> Tensor:
    """The rows (b, ...) of all ranks, in the order of the batch; a gradient goes back to each one's own."""
    if _current is None:
        return rows
    found: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return found


def own(leading: int) -> int:
    """How many of the ``leading`` first rows of a batch are of this rank; they lead its rows too."""
    return leading if _current is None else len(range(_current.rank, leading, _current.count))


def whole(rows: int) -> int:
    """Rows of a batch of which this rank has ``rows``."""
    return rows if _current is None else rows * _current.count


class _Sum(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, values: Tensor) -> Tensor:
        assert _current is not None
        found = values.clone()
        _current.sum(found)
        return found

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> Any:
        # Every rank computes the same of the sum: their gradients of it are equal, and added without a message.
        assert _current is not None
        return gradients[0] * _current.count


class _Gather(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        assert _current is not None
        return _current.gather(rows.contiguous())

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> Any:
        assert _current is not None
        return gradients[0][_current.rows] * _current.count


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, str(_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{TIMEOUT}={text}", expected="seconds, such as 300")
    return seconds


def _take_gpu(place: RankPlace, device: torch.device) -> None:
    if device.index is not None:
        raise ConfigError(f"--device {device} for {place.count} ranks", expected="a GPU for each", fix="--device cuda")
    if place.local >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {place.rank} is number {place.local} on a machine with {torch.cuda.device_count()} CUDA devices",
            fix=f"torchrun --nproc-per-node {max(1, torch.cuda.device_count())}, or --device cpu",
        )
    torch.cuda.set_device(place.local)
