"""The CUDA streams that the two sides of a round run on, and what orders them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .parcel import Devices, Parcel, Side, Step, Work


class Streams:
    """A stream for each side: the draft's with high priority, or with multiprocessors of its own.

    One pair serves all rounds of an engine, so that rounds of different requests never run at the
    same time: they would share the scratch memory that libraries keep per stream.

    Args:
        devices: of the two sides.
        draft_sms: multiprocessors for the draft, see ``green_stream``; None: no share of its own.
    """

    def __init__(self, devices: Devices, draft_sms: int | None = None) -> None:
        self.devices = devices
        self.target = torch.cuda.Stream(devices.target)  # type: ignore[no-untyped-call]
        self._green: object = None
        if draft_sms is None:
            self.draft = torch.cuda.Stream(devices.draft, priority=-1)  # type: ignore[no-untyped-call]
        else:
            self._green, self.draft = green_stream(devices.draft, draft_sms)
        # What travels does so on streams of its own, so that it waits for nothing but its content.
        self._ways: dict[Side, tuple[torch.cuda.Stream, torch.cuda.Stream]] = {}
        if devices.apart:
            self._ways = {"target": _way(*devices), "draft": _way(*reversed(devices))}

    def of(self, side: Side) -> torch.cuda.Stream:
        """The stream of a side."""
        stream: torch.cuda.Stream = getattr(self, side)
        return stream

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside, each device's current stream is its side's; the target's where they share it."""
        with torch.cuda.stream(self.draft), torch.cuda.stream(self.target):
            yield

    def wait_for_callers(self) -> None:
        """Start behind what the devices' current streams have been given."""
        for stream in (self.target, self.draft):
            stream.wait_stream(torch.cuda.current_stream(stream.device))

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        self.target.synchronize()
        self.draft.synchronize()

    # ------------------------------------------------------------------ a round
    def run(self, steps: list[Step]) -> None:
        """Launch the steps, each on its side's stream; fork from and join the target's."""
        self.draft.wait_stream(self.target)
        with torch.inference_mode():
            for step in steps:
                if isinstance(step, Work):
                    with torch.cuda.stream(self.of(step.side)):
                        step.run()
                else:
                    self.send(step.parcel)
        self.target.wait_stream(self.draft)

    def send(self, parcel: Parcel) -> None:
        """The receiver's stream goes on behind what the sender's has been given so far."""
        sender, receiver = self.of(parcel.sender), self.of(parcel.receiver)
        if not parcel.crosses:
            receiver.wait_stream(sender)
            return
        start, end = self._ways[parcel.sender]
        start.wait_stream(sender)
        # A copy between devices runs on the sender's current stream and ties the receiver's to it.
        with torch.cuda.stream(end), torch.cuda.stream(start):
            parcel.copy()
        receiver.wait_stream(end)


def _way(start: torch.device, end: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    return (
        torch.cuda.Stream(start),  # type: ignore[no-untyped-call]
        torch.cuda.Stream(end),  # type: ignore[no-untyped-call]
    )


def green_stream(device: torch.device, num_sms: int) -> tuple[object, torch.cuda.Stream]:
    """A stream whose kernels run on ``num_sms`` multiprocessors only, and the context to keep.

    The driver rounds the number up (on Hopper to a multiple of 8). The other streams still use all
    of them, these included: the share keeps the draft from spreading, not others out. Such a stream
    has normal priority, torch offers no other.

    Raises:
        ValueError: more than the device has, or this torch or driver has no green contexts.
    """
    most = torch.cuda.get_device_properties(device).multi_processor_count
    if num_sms > most:
        raise ValueError(f"draft_sms was {num_sms}; {device} has {most} multiprocessors")
    try:
        from torch.cuda.green_contexts import GreenContext

        context = GreenContext.create(num_sms=num_sms, device_id=device.index)
        return context, context.Stream()  # type: ignore[attr-defined]
    except (ImportError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"draft_sms was {num_sms}; it needs green contexts, which torch {torch.__version__} "
            f"or the driver does not give here: {reason}"
        ) from error
