"""Numbers that the host writes and a device reads."""

from __future__ import annotations

import torch


class Staged:
    """``count`` int32 numbers, written through ``view`` and sent to ``tensor`` in one copy.

    Args:
        count: how many.
        device: of ``tensor``; on a CPU the two are the same memory and nothing is sent.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._host = torch.zeros(count, dtype=torch.int32)
        self.tensor = self._host.to(device)
        self.view = self._host.numpy()  # writing through NumPy costs a tenth of a torch operation

    def upload(self) -> None:
        """Send what was written to the device."""
        if self.tensor is not self._host:
            self.tensor.copy_(self._host)
