"""One lean decoder for the Llama family: Llama 2/3, Mistral, Qwen2, Qwen3, SmolLM, TinyLlama...

On a CPU all layers are one native call (``ops.Decoder``): at batch 1 the number of calls is what a
small model pays for, and two models on two threads must not queue for the interpreter lock.
Elsewhere they are torch's matrix products and our kernels (``trunk.OpsTrunk``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F

from .. import ops
from ..cache import SlotCache
from ..staging import Staged
from ..tree import SpeculationTree
from .config import LlamaConfig
from .linear import Linear, PlainLinear
from .protocol import ForwardOutput
from .trunk import OpsTrunk, Trunk

if TYPE_CHECKING:
    from ..drafting import DraftBuffers, Sampler

PREFILL_CHUNK = 256
SPARE_POSITIONS = 256
KEPT_ROWS = 64  # buffers for more rows than this are not kept between calls


@dataclass
class LayerWeights:
    """Weights of one decoder layer; q, k, v and gate, up are fused."""

    input_norm: torch.Tensor  # [d]
    qkv: Linear | PlainLinear  # [(Hq + 2 Hkv) * D, d]
    q_norm: torch.Tensor | None  # [D]
    k_norm: torch.Tensor | None  # [D]
    out: Linear | PlainLinear  # [d, Hq * D]
    mlp_norm: torch.Tensor  # [d]
    gate_up: Linear | PlainLinear  # [2F, d]
    down: Linear | PlainLinear  # [d, F]

    @property
    def plain(self) -> tuple[PlainLinear, PlainLinear, PlainLinear, PlainLinear]:
        """qkv, out, gate_up, down, not packed."""
        four = (self.qkv, self.out, self.gate_up, self.down)
        return cast(tuple[PlainLinear, PlainLinear, PlainLinear, PlainLinear], four)

    def tensors(self) -> ops.LayerTensors:
        """The weights as the native decoder takes them: packed."""
        return ops.LayerTensors(
            self.input_norm,
            self.qkv.weight,
            self.qkv.bias,
            self.q_norm,
            self.k_norm,
            self.out.weight,
            self.out.bias,
            self.mlp_norm,
            self.gate_up.weight,
            self.gate_up.bias,
            self.down.weight,
            self.down.bias,
        )


class LlamaModel:
    """Weights and sizes; a ``CausalLM``.

    Args:
        config: sizes and constants.
        embedding: ``[V, d]``; its device and dtype are the model's.
        layers: weights; packed (``Linear``) for a CPU, plain (``PlainLinear``) elsewhere.
        final_norm: ``[d]``.
        head: V outputs, packed or plain like the layers.
        backend: which kernels the plain path uses; None: those of the device.
    """

    def __init__(
        self,
        config: LlamaConfig,
        embedding: torch.Tensor,
        layers: list[LayerWeights],
        final_norm: torch.Tensor,
        head: Linear | PlainLinear,
        backend: ops.Backend | None = None,
    ) -> None:
        self.config = config
        self.embedding, self.head, self.backend = embedding, head, backend
        self.layers, self.final_norm = layers, final_norm
        self.vocab_size = config.vocab_size
        self.max_seq_len = config.max_seq_len
        self.device, self.dtype = embedding.device, embedding.dtype
        self.eos_token_ids = config.eos_token_ids
        cos, sin = self._rotary_tables()
        self.drafter: ops.Drafter | None = None
        if isinstance(head, PlainLinear):
            self.decoder: Trunk = OpsTrunk(config, layers, final_norm, cos, sin, backend)
            return
        decoder = ops.Decoder(
            [layer.tensors() for layer in layers],
            final_norm,
            cos,
            sin,
            num_q_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            inner_size=config.intermediate_size,
            eps=config.norm_eps,
        )
        self.decoder = decoder
        self.drafter = ops.Drafter(decoder, embedding, head.weight, head.bias)

    def _rotary_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines ``[P, D/2]`` float32; a few rows more than there are positions.

        A round on the device has static shapes: its last rows may lie behind the end, unused.
        """
        config = self.config
        angles = torch.outer(
            torch.arange(config.max_seq_len + SPARE_POSITIONS, dtype=torch.float32),
            config.rope.frequencies(config.head_dim),
        )
        return tuple(  # type: ignore[return-value]
            table.contiguous().to(self.device) for table in (angles.cos(), angles.sin())
        )

    def new_state(self, max_seq_len: int, tree_slots: int) -> LlamaState:
        """An empty state.

        Raises:
            ValueError: ``max_seq_len`` beyond the model's own, or negative ``tree_slots``.
        """
        if tree_slots < 0:
            raise ValueError(f"tree_slots was {tree_slots}; it must be at least 0")
        if not 1 <= max_seq_len <= self.max_seq_len:
            raise ValueError(
                f"max_seq_len was {max_seq_len}; it must be in 1 .. {self.max_seq_len}"
            )
        kind = LlamaState if self.drafter is None else NativeLlamaState
        return kind(self, max_seq_len, tree_slots)


class _Step:
    """Where N new tokens go, what each sees, and buffers for them. Kept and refilled, per N."""

    def __init__(self, model: LlamaModel, count: int, words: int) -> None:
        # A forward fills the logits, or the final norm's output, which the head then reads.
        width = model.config.hidden_size if model.drafter is None else model.vocab_size
        self.out = model.embedding.new_empty(count, width)
        self._staged = Staged(2 * count + 1 + count * words, model.device)
        numbers, view = self._staged.tensor, self._staged.view
        self.positions = numbers[:count].view(1, count)
        self.slots = numbers[count : 2 * count].view(1, count)
        self.prefix = numbers[2 * count : 2 * count + 1]
        self.bits = numbers[2 * count + 1 :].view(1, count, words) if words else None
        self.positions_view, self.slots_view = view[:count], view[count : 2 * count]
        self.prefix_view = view[2 * count : 2 * count + 1]
        self.bits_view = view[2 * count + 1 :].reshape(count, words) if words else None

    def upload(self) -> None:
        """Send what was written to the device."""
        self._staged.upload()


class LlamaState:
    """Cache and pending tree of one request; a ``DecoderState``."""

    def __init__(self, model: LlamaModel, max_seq_len: int, tree_slots: int) -> None:
        config = model.config
        self.model, self._capacity = model, max_seq_len
        self.cache = SlotCache(
            layers=config.num_layers,
            kv_heads=config.num_kv_heads,
            slots=max_seq_len + max(tree_slots, 1),
            head_dim=config.head_dim,
            dtype=model.dtype,
            device=model.device,
            backend=model.backend,
        )
        self.tree = SpeculationTree(tree_slots)
        self._steps: dict[tuple[int, int], _Step] = {}

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return self.cache.length

    @property
    def num_nodes(self) -> int:
        """Pending nodes."""
        return len(self.tree)

    # ------------------------------------------------------------------ protocol
    def prefill(self, tokens: torch.Tensor) -> None:
        """Extend the prefix by ``tokens [n]``, in chunks; the head is not computed."""
        if self.num_nodes:
            raise ValueError(f"prefill with {self.num_nodes} pending nodes; commit or roll back")
        self._check_tokens(tokens)
        if len(tokens) == 0:
            return
        if self.length + len(tokens) > self._capacity:
            raise ValueError(
                f"tokens had {len(tokens)} entries after a prefix of {self.length}; "
                f"together they must be at most {self._capacity}"
            )
        self._check_ids(tokens)
        with torch.inference_mode():
            for begin in range(0, len(tokens), PREFILL_CHUNK):
                chunk, start = tokens[begin : begin + PREFILL_CHUNK], self.length
                count = len(chunk)
                step = self._step(count, 0)
                step.slots_view[:] = step.positions_view[:] = np.arange(start, start + count)
                step.prefix_view[0] = start
                step.upload()
                self._decode(chunk, step)
                self.cache.length += count

    def forward(
        self,
        tokens: torch.Tensor,
        parents: Sequence[int] | None = None,
        *,
        hidden_layers: int = 0,
    ) -> ForwardOutput:
        """Append ``tokens [N]`` to the tree; logits ``[N, V]`` and the last layers' outputs."""
        self._check_tokens(tokens)
        if len(tokens) == 0:
            raise ValueError("tokens was empty; it must have at least one token")
        if not 0 <= hidden_layers <= self.model.config.num_layers:
            raise ValueError(
                f"hidden_layers was {hidden_layers}; it must be in 0 .. "
                f"{self.model.config.num_layers}"
            )
        if self.model.device.type != "cpu" and tokens.device.type == "cpu":
            self._check_ids(tokens)  # a device would not say which argument was wrong
        first, count = len(self.tree), len(tokens)
        self.tree.grow(count, parents)
        try:
            step = self._place(first, count)
            with torch.inference_mode():
                return self._logits(tokens, step, hidden_layers)
        except Exception:
            self.tree.truncate(first)
            raise

    def commit(self, path: Sequence[int]) -> None:
        """Append a path of pending nodes to the prefix."""
        self.tree.check_path(path)
        if self.length + len(path) > self._capacity:
            raise ValueError(
                f"path had {len(path)} nodes after a prefix of {self.length}; "
                f"together they must be at most {self._capacity}"
            )
        self.cache.commit(path)
        self.tree.clear()

    def rollback(self, length: int) -> None:
        """Cut the prefix to ``length``."""
        self.cache.rollback(length)
        self.tree.clear()

    def run(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        prefix_length: torch.Tensor,
        ancestor_bits: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits ``[N, V]`` of ``tokens [N]``; everything is where the caller says.

        For programs that keep their own books on the device (``rounds/``): ``positions``,
        ``slots`` ``[1, N]``, ``prefix_length`` ``[1]`` and ``ancestor_bits`` as for
        ``ops.tree_attention``; nothing is checked by the host, tree and length stay as they are.
        """
        residual = F.embedding(tokens, self.model.embedding)
        normed = torch.empty_like(residual)
        self.model.decoder.forward(
            residual, self.cache.data, positions, slots, prefix_length, ancestor_bits, out=normed
        )
        return self.model.head(normed)

    # ------------------------------------------------------------------ inside
    def _check_tokens(self, tokens: torch.Tensor) -> None:
        if not isinstance(tokens, torch.Tensor):
            raise TypeError(f"tokens was {type(tokens).__name__}; it must be a torch tensor [n]")
        if tokens.dim() != 1 or tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"tokens was {tokens.dtype} {list(tokens.shape)}; it must be int32 or int64 [n]"
            )

    def _check_ids(self, tokens: torch.Tensor) -> None:
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= self.model.vocab_size:
            raise ValueError(self._bad_ids(tokens))

    def _bad_ids(self, tokens: torch.Tensor) -> str:
        return (
            f"tokens had ids {int(tokens.min())} .. {int(tokens.max())}; "
            f"they must be in 0 .. {self.model.vocab_size - 1}"
        )

    def _step(self, count: int, words: int) -> _Step:
        step = self._steps.get((count, words))
        if step is None:
            with torch.inference_mode(False):  # it is refilled later, inside that mode or not
                step = _Step(self.model, count, words)
            if count <= KEPT_ROWS:
                self._steps[count, words] = step
        return step

    def _place(self, first: int, count: int) -> _Step:
        """Positions, slots and visibility of the nodes from ``first`` on."""
        depths = self.tree.depths
        deepest = self.length + max(depths[first:], default=0)
        if deepest >= self.model.max_seq_len:
            raise ValueError(
                f"tokens would reach position {deepest}; positions must be below "
                f"{self.model.max_seq_len}"
            )
        # Where all pending nodes are one chain, those before the new ones are as good as prefix.
        causal = self.tree.is_chain
        step = self._step(count, 0 if causal else (len(self.tree) + 31) // 32)
        start = self.length + first
        step.slots_view[:] = np.arange(start, start + count)
        step.positions_view[:] = depths[first:]
        step.positions_view += self.length
        step.prefix_view[0] = start if causal else self.length
        if step.bits_view is not None:
            step.bits_view[:] = self.tree.bits(first)
        step.upload()
        return step

    def _hidden(self, count: int, hidden_layers: int) -> torch.Tensor | None:
        """Room for what is asked for, ``[N, K, d]``."""
        if not hidden_layers:
            return None
        width = self.model.config.hidden_size
        return self.model.embedding.new_empty(count, hidden_layers, width)

    def _logits(self, tokens: torch.Tensor, step: _Step, hidden_layers: int) -> ForwardOutput:
        hidden = self._hidden(len(tokens), hidden_layers)
        normed = self._decode(tokens, step, hidden)
        return ForwardOutput(self.model.head(normed), hidden)

    def _decode(
        self, tokens: torch.Tensor, step: _Step, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """All layers: final norm's output ``[N, d]``; fills ``hidden``."""
        model = self.model
        try:
            residual = F.embedding(tokens.to(model.device), model.embedding)
        except IndexError as error:
            raise ValueError(self._bad_ids(tokens)) from error
        normed = torch.empty_like(residual) if model.drafter is not None else step.out
        model.decoder.forward(
            residual,
            self.cache.data,
            step.positions,
            step.slots,
            step.prefix,
            step.bits,
            out=normed,
            hidden=hidden,
        )
        return normed


class NativeLlamaState(LlamaState):
    """A state whose model goes from tokens to logits in one native call (on a CPU)."""

    def _logits(self, tokens: torch.Tensor, step: _Step, hidden_layers: int) -> ForwardOutput:
        drafter, hidden = self.model.drafter, self._hidden(len(tokens), hidden_layers)
        assert drafter is not None, "new_state chooses this class for models that have one"
        ids = tokens if tokens.dtype == torch.int64 else tokens.long()
        try:
            drafter.forward(
                self.cache.data,
                ids,
                step.positions,
                step.slots,
                step.prefix,
                step.bits,
                out=step.out,
                hidden=hidden,
            )
        except ValueError:
            self._check_ids(tokens)
            raise
        return ForwardOutput(step.out, hidden)

    def draft_steps(
        self,
        tokens: Sequence[int],
        branches: int,
        steps: int,
        sampler: Sampler,
        position: int,
        stop_below: float,
        out: DraftBuffers,
    ) -> int:
        """Several steps in one native call; see ``drafting.draft_steps``."""
        if steps == 0:
            return 0
        if self.num_nodes:
            raise ValueError(f"draft with {self.num_nodes} pending nodes; commit or roll back")
        params, drafter = sampler.params, self.model.drafter
        assert drafter is not None, "new_state chooses this class for models that have one"
        taken = drafter.draft(
            self.cache.data,
            torch.tensor(tokens, dtype=torch.int64),
            prefix=self.length,
            branches=max(branches, 1),
            steps=steps,
            draw=sampler.draw,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=params.seed,
            position=position,
            stop_below=stop_below,
            logits=out.logits,
            cutoff=out.cutoff,
            drawn=out.tokens,
            confidence=out.confidence,
        )
        if branches:
            parents = [*([-1] * branches), *range((taken - 1) * branches)]
            self.tree.grow(taken * branches, parents)
        else:
            self.cache.length += len(tokens) + taken - 1
        return taken
