"""The clock of an epoch: how fast it is, how long it waits for data, and what of it a checkpoint has counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from kdstream.stream.stream import Stream
from kdstream.training.state import State


@dataclass
class Clock:
    """Runs from the moment it is made.

    Attributes:
        stream: says how long its consumer has waited; the wait is counted from here.
        seen: images of the epoch.
        uncounted: those that :meth:`count` has not counted yet.
        began, counted, saved, ticked: when the epoch, the time to count, the time since a checkpoint, the step began.
        waited: by the last tick.
    """

    stream: Stream
    seen: int = 0
    uncounted: int = 0
    began: float = field(default_factory=time.perf_counter)
    counted: float = field(init=False)
    saved: float = field(init=False)
    ticked: float = field(init=False)
    waited: float = field(init=False)

    def __post_init__(self) -> None:
        self.counted = self.saved = self.ticked = self.began
        self.waited = self.stream.wait_seconds

    def tick(self, images: int) -> float:
        """A step is done; which share of it (0..1) was spent waiting for data."""
        now, waited = time.perf_counter(), self.stream.wait_seconds
        share = (waited - self.waited) / max(now - self.ticked, 1e-9)
        self.ticked, self.waited = now, waited
        self.seen, self.uncounted = self.seen + images, self.uncounted + images
        return min(share, 1)

    def since_save(self) -> float:
        """Seconds since the last checkpoint, or since the epoch began."""
        return self.ticked - self.saved

    def count(self, state: State) -> None:
        """Add to the training's time and images what is new, before a checkpoint."""
        state.seconds, state.images = state.seconds + self.ticked - self.counted, state.images + self.uncounted
        self.counted, self.uncounted = self.ticked, 0

    def saves(self) -> None:
        """A checkpoint has been written."""
        self.saved = time.perf_counter()

    def row(self, epoch: int) -> dict[str, float]:
        """The epoch's row of ``speed.jsonl``; the wait is counted anew from here."""
        took = max(self.ticked - self.began, 1e-9)
        share = min(1.0, self.stream.wait_seconds / took)
        self.stream.wait_seconds = 0.0
        return {"epoch": epoch, "images_per_s": self.seen / took, "seconds": took, "wait_share": share}
