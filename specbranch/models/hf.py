"""Any causal language model of transformers whose attention a tree can be given to.

Slower than the native models (``llama.py``), and for architectures that those do not know. Where a
layer's attention is what ``ops.tree_attention`` computes, it is plugged in through transformers'
attention registry; elsewhere the architecture's own attention gets a dense mask. Each model is
compared with its own plain forwards when it is made (``hf_check.py``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import ops
from ..cache import SlotCache
from .hf_limits import text_config, usable_length, why_not
from .protocol import ForwardOutput
from .state import TreeState, check_room

if TYPE_CHECKING:
    from types import ModuleType

    from .hf_cache import LayerShape

MIN_VERSION = (4, 56)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TREE_ATTENTION = "specbranch_tree_attention"  # our name in transformers' registry
INSTALL = f"pip install 'transformers>={MIN_VERSION[0]}.{MIN_VERSION[1]}'"

logger = logging.getLogger(__name__)


def require_transformers() -> ModuleType:
    """The package.

    Raises:
        ModuleNotFoundError: it is not installed, or too old; the message says what to install.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this model needs the package transformers: {INSTALL}"
        ) from error
    version = str(transformers.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
        raise ModuleNotFoundError(f"transformers was {version}, which is too old: {INSTALL}")
    module: ModuleType = transformers
    return module


@dataclass(frozen=True)
class HFSizes:
    """What a state must know of the model."""

    num_layers: int  # whose outputs can be read
    hidden_size: int
    shapes: tuple[LayerShape, ...]  # of the layers that keep keys and values


class HFModel:
    """A transformers model; a ``CausalLM``.

    The object becomes ours: it is set to inference, and its attention implementation may change.

    Args:
        model: a causal language model of transformers, on one device, in float32, bfloat16 or
            float16.
        max_seq_len: most tokens; None: what the config says. Sliding windows limit it: up to their
            length they are plain attention.
        backend: which of our kernels to use; None: those of the device.
        check: compare with plain forwards of the same model, and refuse it where they differ.

    Raises:
        TypeError, ValueError: the model cannot be served; the message says why.
        ModuleNotFoundError: transformers is not installed, or too old.
    """

    implementation = "transformers"

    def __init__(
        self,
        model: Any,
        *,
        max_seq_len: int | None = None,
        backend: ops.Backend | None = None,
        check: bool = True,
    ) -> None:
        transformers = require_transformers()
        if not isinstance(model, transformers.PreTrainedModel):
            raise TypeError(f"model was {type(model).__name__}; it must be a transformers model")
        self.name, self.backend = type(model).__name__, backend
        self.transformers_model = model.eval()
        reason = why_not(model.config, bool(getattr(model, "_is_stateful", False)))
        if reason is not None:
            raise ValueError(f"{self.name} cannot be served: {reason}")
        self.device, self.compute_dtype = self._one_device_and_dtype()
        self.max_seq_len = self._max_seq_len(max_seq_len)
        self.eos_token_ids = self._eos()
        self.base = model.base_model
        self._probe()
        embedding = model.get_input_embeddings().weight.detach()
        if embedding.shape[0] < self.vocab_size:
            raise ValueError(
                f"{self.name} cannot be served: it gives logits for {self.vocab_size} tokens and "
                f"reads {embedding.shape[0]}"
            )
        if embedding.shape[1] == self.config.hidden_size:  # else H-RAD has nothing to read
            self.embedding = embedding
        self.parity: float | None = None
        self.attention = self._choose_attention(check)
        logger.info("%s: transformers, %s", self.name, self.attention)

    def new_state(self, max_seq_len: int, tree_slots: int) -> HFState:
        """An empty state.

        Raises:
            ValueError: ``max_seq_len`` beyond the model's own, or negative ``tree_slots``.
        """
        check_room(self, max_seq_len, tree_slots)
        return HFState(self, max_seq_len, tree_slots)

    # ------------------------------------------------------------------ construction
    def _one_device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        parameters = list(self.transformers_model.parameters())
        devices = {parameter.device for parameter in parameters}
        if len(devices) != 1 or next(iter(devices)).type == "meta":
            named = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"model was on {named or 'no device'}; it must be on one device")
        dtype: torch.dtype = self.transformers_model.dtype
        if dtype not in DTYPES:
            raise ValueError(f"model was {dtype}; it must be float32, bfloat16 or float16")
        return devices.pop(), dtype

    def _max_seq_len(self, wanted: int | None) -> int:
        limit, reason = usable_length(self.transformers_model.config)
        if limit is None and wanted is None:
            raise ValueError(f"max_seq_len was None; {self.name} does not say how long it can be")
        if wanted is None:
            assert limit is not None
            logger.info("%s: at most %d tokens, from %s", self.name, limit, reason)
            return limit
        if wanted < 1 or (limit is not None and wanted > limit):
            raise ValueError(
                f"max_seq_len was {wanted}; it must be in 1 .. {limit} ({reason})"
                if limit is not None
                else f"max_seq_len was {wanted}; it must be at least 1"
            )
        return wanted

    def _eos(self) -> tuple[int, ...]:
        model = self.transformers_model
        found = getattr(model.generation_config, "eos_token_id", None)
        found = getattr(model.config, "eos_token_id", None) if found is None else found
        if found is None:
            return ()
        return tuple(found) if isinstance(found, list | tuple) else (int(found),)

    def _probe(self) -> None:
        """Shapes that no config field tells: of a layer's keys and values, and of the logits."""
        from transformers import DynamicCache

        from .hf_cache import LayerShape

        cache = DynamicCache()
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        try:
            with torch.inference_mode():
                logits = self.transformers_model(ids, past_key_values=cache, use_cache=True).logits
        except Exception as error:  # whatever an architecture stumbles over
            raise ValueError(
                f"{self.name} cannot be served: a plain forward fails, {one_line(error)}"
            ) from error
        kept = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
        if len(kept) != len(cache.layers) or not kept:
            raise ValueError(f"{self.name} cannot be served: it does not keep keys in every layer")
        self.vocab_size, self.dtype = int(logits.shape[-1]), logits.dtype
        shapes = tuple(
            LayerShape(each.keys.shape[1], each.keys.shape[-1], each.values.shape[-1])
            for each in kept
        )
        text = text_config(self.transformers_model.config)
        self.layers = _decoder_layers(self.base, int(text.num_hidden_layers))
        self.config = HFSizes(len(self.layers), int(text.hidden_size), shapes)

    def _choose_attention(self, check: bool) -> str:
        """Try the ways to give a tree to this model; the first that is right is taken."""
        from . import hf_cache, hf_check

        hf_cache.register(TREE_ATTENTION)
        own = self._own_attention()
        reference = hf_check.Reference(self) if check else None
        found = []
        for implementation in dict.fromkeys((TREE_ATTENTION, own, "eager")):
            if implementation == TREE_ATTENTION and not self._fits_our_op():
                continue
            self._use(implementation)
            if self._implementation != implementation:
                continue
            try:
                self.parity = None if reference is None else reference.compare(self)
            except Exception as error:  # whatever an architecture stumbles over
                logger.debug("%s with %s", self.name, implementation, exc_info=True)
                found.append(f"{self.attention_name}: {one_line(error)}")
                continue
            return self.attention_name
        raise ValueError(f"{self.name} cannot be served: {'; '.join(found)}")

    def _own_attention(self) -> str:
        """The architecture's own implementation, one that takes any mask."""
        model = self.transformers_model
        text = text_config(model.config)
        now = str(text._attn_implementation)
        softcaps = getattr(text, "attn_logit_softcapping", None) is not None
        if softcaps or now not in ("sdpa", "eager", TREE_ATTENTION):
            now = "eager"
            self._use(now)
        return "sdpa" if now == TREE_ATTENTION else now

    def _fits_our_op(self) -> bool:
        """Whether the architecture asks the registry, and its layers are all of one plain shape."""
        model, shapes = self.transformers_model, self.config.shapes
        text = text_config(model.config)
        return (
            bool(getattr(model, "_supports_attention_backend", False))
            and bool(getattr(model, "_supports_sdpa", False))
            and getattr(text, "attn_logit_softcapping", None) is None
            and len(set(shapes)) == 1
            and shapes[0].key_dim == shapes[0].value_dim
        )

    def _use(self, implementation: str) -> None:
        model = self.transformers_model
        if self._implementation != implementation:
            model.set_attn_implementation(implementation)

    @property
    def _implementation(self) -> str:
        return str(text_config(self.transformers_model.config)._attn_implementation)

    @property
    def uses_tree_attention(self) -> bool:
        """Whether our op computes the attention."""
        return self._implementation == TREE_ATTENTION

    @property
    def attention_name(self) -> str:
        """``"tree_attention"``, or ``"dense mask"`` for the architecture's own attention."""
        return "tree_attention" if self.uses_tree_attention else "dense mask"

    # ------------------------------------------------------------------ forward
    def run(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        cache: Any,
        *,
        hidden_layers: int = 0,
        head: bool = True,
    ) -> ForwardOutput:
        """Run ``tokens [N]`` at ``positions [N]`` over a transformers ``cache``.

        ``mask [1, 1, N, slots]`` is added to the scores. Without ``head`` the logits are empty.
        """
        module = self.transformers_model if head else self.base
        with _outputs_of(self.layers, hidden_layers) as rows:
            out = module(
                input_ids=tokens.to(self.device, torch.int64).unsqueeze(0),
                position_ids=positions.to(self.device).unsqueeze(0),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            )
        hidden = torch.stack([row[0] for row in rows], dim=1) if hidden_layers else None
        logits = out.logits[0] if head else mask.new_empty(0)
        return ForwardOutput(logits, hidden)


class HFState(TreeState):
    """Cache and pending tree of one request; a ``DecoderState``."""

    model: HFModel

    def __init__(self, model: HFModel, max_seq_len: int, tree_slots: int) -> None:
        shapes = model.config.shapes
        cache = SlotCache(
            layers=len(shapes),
            kv_heads=max(shape.kv_heads for shape in shapes),
            slots=max_seq_len + max(tree_slots, 1),
            head_dim=max(max(shape.key_dim, shape.value_dim) for shape in shapes),
            dtype=model.compute_dtype,
            device=model.device,
            backend=model.backend,
        )
        super().__init__(model, cache, max_seq_len, tree_slots)

    def _read(self, chunk: torch.Tensor) -> None:
        positions = torch.arange(self.length, self.length + len(chunk))
        self._run(chunk, positions, 0, None, head=False)

    def _read_nodes(self, tokens: torch.Tensor, first: int, hidden_layers: int) -> ForwardOutput:
        positions = torch.tensor(self.tree.depths[first:]) + self.length
        bits = None if self.tree.is_chain else torch.from_numpy(self.tree.bits(first).copy())
        return self._run(tokens, positions, first, bits, hidden_layers=hidden_layers)

    def _run(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        first: int,
        bits: torch.Tensor | None,
        *,
        hidden_layers: int = 0,
        head: bool = True,
    ) -> ForwardOutput:
        """``bits [N, W]``: which nodes each new one sees; None: all slots up to its own."""
        from .hf_cache import Placement, slot_layers

        model, start, count = self.model, self.length + first, len(tokens)
        if model.uses_tree_attention:
            prefix = torch.tensor([start if bits is None else self.length], dtype=torch.int32)
            seen = None if bits is None else bits.unsqueeze(0).to(model.device)
            where = Placement(start, count, prefix.to(model.device), seen, model.backend)
            # Nobody reads it, and whoever did would stumble.
            mask = torch.empty(1, 1, 0, 0, dtype=model.compute_dtype, device=model.device)
        else:
            where, mask = Placement(start, count), self._dense_mask(start, count, bits)
        cache = slot_layers(self.cache.data, model.config.shapes, where)
        return model.run(tokens, positions, mask, cache, hidden_layers=hidden_layers, head=head)

    def _dense_mask(self, start: int, count: int, bits: torch.Tensor | None) -> torch.Tensor:
        """``[1, 1, N, start + N]``: 0 for what is seen, the lowest number for what is not."""
        dtype = self.model.compute_dtype
        visible = torch.ones(count, start + count, dtype=torch.bool).tril(start)
        if bits is not None:
            visible[:, self.length :] = ops.dense_mask(bits, start + count - self.length)
        mask = torch.zeros(visible.shape, dtype=dtype)
        mask.masked_fill_(~visible, torch.finfo(dtype).min)
        return mask.to(self.model.device)[None, None]


# ---------------------------------------------------------------------------- hidden states
def _decoder_layers(base: torch.nn.Module, count: int) -> Sequence[torch.nn.Module]:
    """The list of decoder layers; empty where it is not to be found."""
    for module in base.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    return []


@contextmanager
def _outputs_of(layers: Sequence[torch.nn.Module], count: int) -> Iterator[list[torch.Tensor]]:
    """What the last ``count`` layers give while the block runs in this thread, in their order."""
    rows: list[torch.Tensor] = []
    thread = threading.get_ident()  # a draft may run the same model at the same time

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            rows.append(output if isinstance(output, torch.Tensor) else output[0])

    hooks = [layer.register_forward_hook(keep) for layer in layers[len(layers) - count :]]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def one_line(error: BaseException) -> str:
    """Kind and text of an error that somebody else worded, cut short."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
