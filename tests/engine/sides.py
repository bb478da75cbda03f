"""A pretended CUDA on the CPU: devices kept apart, streams with clocks, graphs as tapes.

``Sides`` is a mode under which every torch function and, through ``watch_native``, every native op
is looked at. It knows which device each memory belongs to and refuses functions that mix devices;
it knows the stream each function would run on and refuses to touch memory that another stream has
touched with nothing ordering the two; while a graph is captured it keeps a tape, which a replay
runs again over the same memory, and refuses what a capture could not take (values read by the
host). ``pretend_cuda`` puts streams, events and graphs of its kind in torch's place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from specbranch import ops
from specbranch.models.llama import LlamaModel
from specbranch.rounds import graphs
from specbranch.rounds.parcel import Parcel

LOOKS = {"untyped_storage", "__get__", "size", "stride", "dim", "__len__", "numel", "data_ptr"}
HOST_READS = {"item", "tolist", "cpu", "numpy", "nonzero", "tensor", "equal", "allclose"} | {
    f"__{name}__" for name in ("bool", "int", "float", "index", "contains", "array")
}
OP_MODULES = ("attention", "cache", "decoder", "layers", "rounds", "sampling", "verify")


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


class Sides(TorchFunctionMode):
    """See above. What is made with ``device=cpu:N`` is that device's, a result is its arguments';
    what is nobody's yet (made on "the CPU", like another tensor) becomes that of the first it
    meets.
    """

    def __init__(self, *devices: torch.device) -> None:
        super().__init__()
        self.devices = devices
        self._owner: dict[int, torch.device] = {}
        self._kept: list[torch.UntypedStorage] = []  # so that no address is used twice
        self._hosts: set[int] = set()
        self._constants: set[int] = set()
        self.calls = {device: 0 for device in devices}
        self.copies = 0
        self.cuda: PretendedCuda | None = None

    # ------------------------------------------------------------------ whose memory
    def own(self, device: torch.device, *tensors: torch.Tensor | None) -> None:
        """Give what is nobody's to a device."""
        for tensor in tensors:
            if tensor is not None and self.owner_of(tensor) is None:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._hosts:
                    self._owner[storage._cdata] = device
                    self._kept.append(storage)

    def own_model(self, model: LlamaModel) -> None:
        """Weights are made on the CPU before they are said to be elsewhere; never written."""
        trunk, weights = model.decoder, [model.embedding, model.head.weight]
        if hasattr(trunk, "_layers"):
            weights += [trunk._final_norm, trunk._cos, trunk._sin]
            for layer in trunk._layers:
                weights += [layer.input_norm, layer.mlp_norm]
                weights += [linear.weight for linear in layer.plain]
        self.own(model.device, *weights)
        self._constants |= {weight.untyped_storage()._cdata for weight in weights}

    def leave_to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Pinned memory is nobody's."""
        storage = tensor.untyped_storage()
        self._hosts.add(storage._cdata)
        self._kept.append(storage)
        return tensor

    def owner_of(self, tensor: torch.Tensor) -> torch.device | None:
        return self._owner.get(tensor.untyped_storage()._cdata)

    def may_change(self, tensor: torch.Tensor) -> bool:
        """Device memory other than weights."""
        idx = tensor.untyped_storage()._cdata
        return idx in self._owner and idx not in self._constants

    # ------------------------------------------------------------------ a call
    def call(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run ``func`` on its tensors' device; its current stream touches them."""
        tensors = list(tensors_in((args, kwargs)))
        owners = {owner for tensor in tensors if (owner := self.owner_of(tensor))}
        assert len(owners) < 2, f"{name} was given tensors of both devices"
        device = owners.pop() if owners else None
        if device is not None:
            self.calls[device] += 1
            self.own(device, *tensors)
        result = func(*args, **kwargs)
        named = [arg for arg in args if isinstance(arg, torch.device)]  # .to(device)
        made_on = kwargs.get("device", named[0] if named else None)
        device = made_on if made_on in self.devices else device
        if device is not None:
            made = list(tensors_in(result))
            self.own(device, *made)
            if self.cuda is not None:
                used = [*tensors, *made] if made_on is None else made
                self.cuda.touch(device, name, used)
                self.cuda.keep_on_tape(device, name, func, args, kwargs, made)
        return result

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunction():
            if name in LOOKS:
                return func(*args, **kwargs)
            return self.call(name, func, args, kwargs)

    def copy(self, parcel: Parcel, copy: Callable[[Parcel], None]) -> None:
        """``Parcel.copy``, the one function that may mix devices."""
        self.copies += parcel.crosses
        with torch._C.DisableTorchFunction():
            copy(parcel)
            if parcel.crosses and self.cuda is not None:
                self.cuda.copied(parcel, *map(self.owner_of, (parcel._sent, parcel._received)))


class WatchedNative:
    """``specbranch._C`` whose functions are looked at like torch's: they take tensors past it."""

    def __init__(self, native: Any, sides: Sides) -> None:
        self._native, self._sides = native, sides

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._native, name)
        if not callable(found) or isinstance(found, type) or name.endswith("_bytes"):
            return found

        def watched(*arguments: Any) -> Any:
            with torch._C.DisableTorchFunction():
                return self._sides.call(name, found, arguments, {})

        return watched


class WatchedDecoder:
    """``ops.Decoder``: on a CPU all layers are one native call."""

    def __init__(self, decoder: Any, sides: Sides) -> None:
        self._decoder, self._sides = decoder, sides

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Looked at, then run."""
        with torch._C.DisableTorchFunction():
            self._sides.call("decoder", self._decoder.forward, args, kwargs)


def watch_native(monkeypatch: pytest.MonkeyPatch, sides: Sides, *models: LlamaModel) -> None:
    """Have ``sides`` see what goes past torch."""
    native = WatchedNative(ops._C, sides)
    for name in OP_MODULES:
        monkeypatch.setattr(sys.modules[f"specbranch.ops.{name}"], "_C", native)
    copy = Parcel.copy
    monkeypatch.setattr(Parcel, "copy", lambda parcel: sides.copy(parcel, copy))
    for model in models:
        sides.own_model(model)
        if isinstance(model.decoder, ops.Decoder):
            monkeypatch.setattr(model, "decoder", WatchedDecoder(model.decoder, sides))


# ---------------------------------------------------------------------------------- CUDA
Clock = dict[int, int]  # of each stream, how much of its work is known to be done


def _merge(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)


class PretendedCuda:
    """Streams, events and graphs; ``host`` is what the host knows to be done."""

    def __init__(self, sides: Sides) -> None:
        self.host: Clock = {}
        self.streams: list[Any] = []
        self.tape: list[tuple[Any, ...]] | None = None
        self._origin, self._busy = (0, 0), Clock()
        self._touched: dict[int, dict[int, tuple[int, str]]] = {}
        self._sides, cuda = sides, self

        class Stream:
            def __init__(self, device: torch.device, priority: int = 0) -> None:
                self.device, self.priority, self.idx = device, priority, len(cuda.streams)
                self.clock: Clock = {}
                cuda.streams.append(self)

            def wait_stream(self, other: Stream) -> None:
                _merge(self.clock, other.clock)

            def synchronize(self) -> None:
                assert cuda.tape is None, "the host waited during a capture"
                _merge(cuda.host, self.clock)

        class Event:
            def record(self, stream: Stream) -> None:
                self._clock = dict(stream.clock)

            def synchronize(self) -> None:
                _merge(cuda.host, self._clock)

        self.Stream, self.Event = Stream, Event
        self.current = {device: Stream(device) for device in sides.devices}

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        """``torch.cuda.stream``."""
        before = self.current[stream.device]
        self.current[stream.device] = stream
        try:
            yield
        finally:
            self.current[stream.device] = before

    def touch(self, device: torch.device, name: str, tensors: list[torch.Tensor]) -> None:
        """The device's current stream uses memory: all earlier uses must be known to be done."""
        stream = self.current[device]
        _merge(stream.clock, self.host)
        tick = stream.clock[stream.idx] = stream.clock.get(stream.idx, 0) + 1
        for tensor in filter(self._sides.may_change, tensors):
            users = self._touched.setdefault(tensor.untyped_storage()._cdata, {})
            for other, (when, what) in users.items():
                assert stream.clock.get(other, 0) >= when, f"{name} races with {what}"
            users[stream.idx] = (tick, name)

    def copied(self, parcel: Parcel, start: torch.device, end: torch.device) -> None:
        """As torch orders a copy between devices."""
        assert self.tape is None, "a copy between devices was captured"
        source, sink = self.current[start], self.current[end]
        source.wait_stream(sink)
        self.touch(start, "parcel", [parcel._sent, parcel._received])
        sink.wait_stream(source)

    # ------------------------------------------------------------------ graphs
    def keep_on_tape(
        self, device: torch.device, name: str, func: Any, args: Any, kwargs: Any, made: Any
    ) -> None:
        """During a capture: what a replay will do again."""
        if self.tape is None:
            return
        assert name not in HOST_READS, f"{name} was called during a capture"
        stream, (origin, begin) = self.current[device], self._origin
        assert stream.clock.get(origin, 0) >= begin, f"{name} ran on a stream that was not forked"
        self._busy[stream.idx] = stream.clock[stream.idx]
        self.tape.append((name, func, args, kwargs, made))

    def graph_type(self) -> type:
        """``torch.cuda.CUDAGraph``."""
        cuda = self

        class Graph:
            tape: list[tuple[Any, ...]]

            def replay(self) -> None:
                with torch.inference_mode(), torch._C.DisableTorchFunction():
                    for _, func, args, kwargs, made in self.tape:
                        again = list(tensors_in(func(*args, **kwargs)))
                        for old, new in zip(made, again, strict=True):
                            if old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                                old.copy_(new)
                stream = cuda.current[self.stream.device]
                assert stream is self.stream
                for name, _, args, kwargs, made in self.tape:
                    used = [*tensors_in((args, kwargs)), *made]
                    cuda.touch(stream.device, name, used)

        return Graph

    @contextmanager
    def graph(self, graph: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        """``torch.cuda.graph``."""
        assert self.tape is None and capture_error_mode == "thread_local"
        graph.stream, self.tape, self._busy = stream, [], {}
        begin = stream.clock[stream.idx] = stream.clock.get(stream.idx, 0) + 1
        self._origin = (stream.idx, begin)
        try:
            with self.stream(stream):
                yield
        except Exception:
            self.tape = None
            raise
        for other, tick in self._busy.items():
            assert stream.clock.get(other, 0) >= tick, "a stream was not joined"
        graph.tape, self.tape = self.tape, None


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, sides: Sides) -> PretendedCuda:
    """Streams, events and graphs as ``sides`` understands them, in torch's place."""
    sides.cuda = cuda = PretendedCuda(sides)
    monkeypatch.setattr(torch.cuda, "Stream", cuda.Stream)
    monkeypatch.setattr(torch.cuda, "Event", cuda.Event)
    monkeypatch.setattr(torch.cuda, "stream", cuda.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cuda.current[device])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", cuda.graph_type())
    monkeypatch.setattr(torch.cuda, "graph", cuda.graph)
    monkeypatch.setattr(
        graphs,
        "_pinned_like",
        lambda like: sides.leave_to_host(torch.zeros(like.shape, dtype=like.dtype)),
    )
    return cuda
