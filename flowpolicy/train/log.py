"""Where metrics go: a CSV always, TensorBoard by default, Weights & Biases if asked."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Protocol

from flowpolicy.core.errors import MissingExtraError
from flowpolicy.core.files import write_text


class Logger(Protocol):
    """Receives one row of scalars at a time."""

    def log(self, step: int, row: dict[str, float]) -> None:
        """Store the metrics after update ``step``."""

    def close(self) -> None:
        """Flush and release."""


class CsvLogger:
    """``metrics.csv``: one row per logging interval, flushed at once.

    On resume, rows after the checkpoint are dropped, so that the file equals the uninterrupted run's.

    Args:
        path: the file.
        resume_at: finished updates of the checkpoint; 0 starts a new file.

    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.columns: list[str] = []
        if resume_at and path.exists():
            self._truncate(path, resume_at)
        self._stream = path.open("a" if resume_at else "w", newline="", encoding="utf-8")

    def _truncate(self, path: Path, step: int) -> None:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        self.columns = lines[0] if lines else []
        whole = [row for row in lines[1:] if len(row) == len(lines[0]) and row[0].isdigit() and int(row[0]) <= step]
        write_text(path, "".join(",".join(row) + "\n" for row in [*lines[:1], *whole]))

    def log(self, step: int, row: dict[str, float]) -> None:
        """Append one row; the first decides the columns."""
        if not self.columns:
            self.columns = ["step", *row]
            self._stream.write(",".join(self.columns) + "\n")
        values = {"step": step, **row}
        self._stream.write(",".join(f"{values[name]:.6g}" if name != "step" else str(step) for name in self.columns))
        self._stream.write("\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class TensorBoardLogger:
    """TensorBoard events in ``tensorboard/``; rows after a resumed checkpoint are purged."""

    def __init__(self, folder: Path, resume_at: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=resume_at + 1 if resume_at else None)

    def log(self, step: int, row: dict[str, float]) -> None:
        """Write one scalar per metric."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbLogger:
    """Weights & Biases."""

    def __init__(self, project: str, run: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("wandb", "wandb") from error
        self._run = wandb.init(project=project, name=run.name, dir=str(run), id=run.name, resume="allow")

    def log(self, step: int, row: dict[str, float]) -> None:
        """Send one row."""
        self._run.log(row, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def make_loggers(run: Path, *, tensorboard: bool, wandb: str, resume_at: int) -> list[Logger]:
    """The loggers that an experiment asks for."""
    loggers: list[Logger] = [CsvLogger(run / "metrics.csv", resume_at)]
    if tensorboard:
        loggers.append(TensorBoardLogger(run / "tensorboard", resume_at))
    if wandb:
        loggers.append(WandbLogger(wandb, run))
    return loggers
