"""Checkpoints on their way to an object store while training goes on."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from flowpolicy.core.errors import FlowPolicyError, StoreError, StoreWarning
from flowpolicy.core.remote_run import (
    SNAPSHOT,
    TakenOverError,
    address_of,
    missing_there,
    never_stored,
    publish_remote,
    push_beside,
    snapshot_of,
)

Published = Callable[[Path], None]
"""Told of every checkpoint folder that was published on this machine."""


@contextlib.contextmanager
def uploading(home: Path, keep: int, *, patience: int = 6, pause: float = 1.0) -> Iterator[Published]:
    """Store every checkpoint that is told, in a thread of its own, and the run's logs and pictures at the end.

    For a run of this machine alone nothing happens. What cannot be stored is tried again, with longer and longer
    pauses, for as long as training goes on, and ``patience`` times more at its end.

    Args:
        home: run folder.
        keep: how many newest checkpoints stay in the store; 0 keeps all.
        patience: attempts at the end.
        pause: seconds before the second attempt; doubles with every further one, up to a minute.

    Raises:
        StoreError: the newest checkpoint never reached the store, or somebody else has taken over the run.

    """
    address = address_of(home)
    if address is None:
        yield lambda folder: None
        return
    sys.stderr.write(f"the run works in {home}, and what it publishes goes to {address.url}\n")
    for leftover in home.glob(f"{SNAPSHOT}*"):  # of a process that was killed
        shutil.rmtree(leftover)
    uploads = _Uploads(home, keep, pause)
    if left := missing_there(home):
        uploads.offer(left)
    try:
        yield uploads.offer
    except KeyboardInterrupt:
        uploads.stop()
        raise
    except BaseException:
        with contextlib.suppress(FlowPolicyError):  # what is being raised is what happened first
            uploads.finish(patience)
        raise
    uploads.finish(patience)
    try:
        push_beside(home, *sorted(home.glob("*.csv")), *sorted(home.glob("*.png")))
    except StoreError as error:
        raise never_stored(home, error) from error


class _Uploads:
    """The newest checkpoints of a run that are not stored yet, and the thread that stores them."""

    def __init__(self, home: Path, keep: int, pause: float) -> None:
        self.home, self.keep, self.pause = home, keep, pause
        self._waiting: deque[tuple[Path, contextlib.ExitStack]] = deque()
        self._changed = threading.Condition()
        self._busy = self._over = False
        self._left: int | None = None  # attempts, once the training is over
        self._tried = 0
        self._failure: FlowPolicyError | None = None
        self._thread = threading.Thread(target=self._work, name="flowpolicy-upload", daemon=True)
        self._thread.start()

    def offer(self, folder: Path) -> None:
        """Store a checkpoint when those before it are; where too many wait, the oldest is let go."""
        with self._changed:
            if isinstance(self._failure, TakenOverError):
                raise never_stored(self.home, self._failure) from self._failure
            stack = contextlib.ExitStack()
            self._waiting.append((stack.enter_context(snapshot_of(self.home, folder)), stack))
            while self.keep and len(self._waiting) > self.keep:
                self._waiting.popleft()[1].close()
            self._changed.notify_all()

    def finish(self, patience: int) -> None:
        """Wait for the rest; raises where the newest could not be stored."""
        with self._changed:
            self._left = patience
            self._changed.notify_all()
            while (self._waiting or self._busy) and not self._over:
                self._changed.wait()
        self.stop()
        if self._failure:
            raise never_stored(self.home, self._failure) from self._failure

    def stop(self) -> None:
        """End the thread without waiting for what is not stored; an object that is on its way never appears."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
            left = list(self._waiting)
            self._waiting.clear()
        for _, stack in left:
            stack.close()

    def _work(self) -> None:
        failures = 0
        while True:
            with self._changed:
                while not self._waiting and not self._over:
                    self._changed.wait()
                if self._over:
                    return
                snapshot, stack = self._waiting.popleft()
                self._busy = True
            try:
                publish_remote(self.home, snapshot, self.keep)
                if failures:
                    warnings.warn("the store answers again", StoreWarning, stacklevel=1)
                failures, self._failure = 0, None
                stack.close()
            except Exception as error:
                failures += 1
                self._failed(error, snapshot, stack, failures)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _failed(self, error: Exception, snapshot: Path, stack: contextlib.ExitStack, failures: int) -> None:
        """Put a checkpoint back, say so, and wait before the next attempt."""
        what = error if isinstance(error, FlowPolicyError) else FlowPolicyError(f"{type(error).__name__}: {error}")
        if failures & (failures - 1) == 0:  # the first, second, fourth, eighth, ...
            warnings.warn(f"attempt {failures} to store {snapshot.name}: {what.what}", StoreWarning, stacklevel=1)
        with self._changed:
            self._failure = what
            if self.keep and len(self._waiting) >= self.keep:  # newer ones are there
                stack.close()
            else:
                self._waiting.appendleft((snapshot, stack))
            at_end, pauses = self._left is not None, failures
            if self._left is not None:
                self._left, self._tried = self._left - 1, self._tried + 1
                pauses = self._tried
            hopeless = isinstance(what, StoreError) and what.lasting and at_end
            if self._left == 0 or hopeless or isinstance(what, TakenOverError):
                self._over = True
                return
            pause = min(60.0, self.pause * 2 ** min(pauses - 1, 6))
            self._changed.wait_for(lambda: self._over or (self._left is not None) != at_end, pause)
