"""One lean decoder for the Llama family: Llama 2/3, Mistral, Qwen2, Qwen3, SmolLM, TinyLlama...

On a CPU all layers are one native call (``ops.Decoder``): at batch 1 the number of calls is what a
small model pays for, and two models on two threads must not queue for the interpreter lock.
Elsewhere they are torch's matrix products and our kernels (``trunk.OpsTrunk``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F

from .. import ops
from ..cache import SlotCache
from ..ops._rows import is_gumbel
from ..staging import Staged
from .config import LlamaConfig
from .linear import Int8Linear, Linear, PlainLinear
from .protocol import DecoderState, ForwardOutput
from .state import TreeState, check_room, forward_together
from .trunk import OpsTrunk, Trunk

if TYPE_CHECKING:
    from ..drafting import DraftRequest

Kind = TypeVar("Kind", bound="LlamaState")
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

    implementation = "native"

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

    @property
    def weights(self) -> str:
        """How the matrices are kept: ``"exact"``, or ``"int8"`` where they were rounded."""
        return "int8" if isinstance(self.head, Int8Linear) else "exact"

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
        check_room(self, max_seq_len, tree_slots)
        kind = LlamaState if self.drafter is None else NativeLlamaState
        return kind(self, max_seq_len, tree_slots)

    def forward_batch(
        self,
        states: Sequence[DecoderState],
        tokens: Sequence[torch.Tensor],
        parents: Sequence[Sequence[int] | None],
        *,
        hidden_layers: int = 0,
    ) -> list[ForwardOutput]:
        """One forward for several states of this model; see ``batched.forward_batch``.

        The weights are read once. On a CPU with packed weights each row is bit for bit what it is
        in a forward of its own; elsewhere the last bits of torch's matrix products may depend on
        the number of rows.
        """
        ours = self._own(states, LlamaState)
        read = self._read_nodes if self.drafter is None else self._read_nodes_natively
        return forward_together(ours, tokens, parents, hidden_layers, read)

    def draft_batch(self, requests: Sequence[DraftRequest]) -> list[int]:
        """``draft_steps`` of several states; those that go on share each step's forward."""
        drafter = self.drafter
        assert drafter is not None, "only native states have draft_steps"
        wanted = [each for each in requests if each.steps]
        states = self._own([each.state for each in wanted], NativeLlamaState)
        pairs = zip(states, wanted, strict=True)
        sequences = [state.draft_sequence(each) for state, each in pairs]
        taken = drafter.draft_batch(sequences)
        for state, each, steps in zip(states, wanted, taken, strict=True):
            state.draft_done(each, steps)
        counts = iter(taken)
        return [next(counts) if each.steps else 0 for each in requests]

    def _own(self, states: Sequence[DecoderState], kind: type[Kind]) -> list[Kind]:
        """The states, which must be of this model."""
        ours = [state for state in states if isinstance(state, kind) and state.model is self]
        if len(ours) < len(states):
            raise ValueError("states had one of another model; each must be a state of this one")
        return ours

    def _read_nodes_natively(
        self,
        states: Sequence[LlamaState],
        tokens: Sequence[torch.Tensor],
        firsts: Sequence[int],
        hidden_layers: int,
    ) -> ForwardOutput:
        assert self.drafter is not None, "forward_batch has looked"
        ids = torch.cat([each.long() for each in tokens])
        out = self.embedding.new_empty(len(ids), self.vocab_size)
        hidden = self._hidden_room(len(ids), hidden_layers)
        places = _places(states, tokens, firsts)
        try:
            self.drafter.forward_batch(places, ids, out=out, hidden=hidden)
        except ValueError:
            for state, each in zip(states, tokens, strict=True):
                state._check_ids(each)
            raise
        return ForwardOutput(out, hidden)

    def _read_nodes(
        self,
        states: Sequence[LlamaState],
        tokens: Sequence[torch.Tensor],
        firsts: Sequence[int],
        hidden_layers: int,
    ) -> ForwardOutput:
        assert isinstance(self.decoder, OpsTrunk), "the other trunk comes with a drafter"
        for state, each in zip(states, tokens, strict=True):
            state._check_ids(each)
        ids = torch.cat([each.to(self.device) for each in tokens])
        residual = F.embedding(ids, self.embedding)
        normed = torch.empty_like(residual)
        hidden = self._hidden_room(len(ids), hidden_layers)
        places = _places(states, tokens, firsts)
        self.decoder.forward_batch(residual, places, out=normed, hidden=hidden)
        return ForwardOutput(self.head(normed), hidden)

    def _hidden_room(self, count: int, hidden_layers: int) -> torch.Tensor | None:
        """Room for what is asked for, ``[N, K, d]``."""
        if not hidden_layers:
            return None
        return self.embedding.new_empty(count, hidden_layers, self.config.hidden_size)


def _places(
    states: Sequence[LlamaState], tokens: Sequence[torch.Tensor], firsts: Sequence[int]
) -> list[ops.DecoderSequence]:
    """Where each state's new nodes go."""
    return [
        state._place(first, len(each)).sequence(state.cache.data)
        for state, each, first in zip(states, tokens, firsts, strict=True)
    ]


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

    def sequence(self, cache: torch.Tensor) -> ops.DecoderSequence:
        """Its part of a forward of several sequences."""
        return ops.DecoderSequence(cache, self.positions, self.slots, self.prefix, self.bits)

    def upload(self) -> None:
        """Send what was written to the device."""
        self._staged.upload()


class LlamaState(TreeState):
    """Cache and pending tree of one request; a ``DecoderState``."""

    model: LlamaModel

    def __init__(self, model: LlamaModel, max_seq_len: int, tree_slots: int) -> None:
        config = model.config
        cache = SlotCache(
            layers=config.num_layers,
            kv_heads=config.num_kv_heads,
            slots=max_seq_len + max(tree_slots, 1),
            head_dim=config.head_dim,
            dtype=model.dtype,
            device=model.device,
            backend=model.backend,
        )
        super().__init__(model, cache, max_seq_len, tree_slots)
        self._steps: dict[tuple[int, int], _Step] = {}

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
    def _read(self, chunk: torch.Tensor) -> None:
        count, start = len(chunk), self.length
        step = self._step(count, 0)
        step.slots_view[:] = step.positions_view[:] = np.arange(start, start + count)
        step.prefix_view[0] = start
        step.upload()
        self._decode(chunk, step)

    def _read_nodes(self, tokens: torch.Tensor, first: int, hidden_layers: int) -> ForwardOutput:
        return self._logits(tokens, self._place(first, len(tokens)), hidden_layers)

    def _ids_need_a_check(self, tokens: torch.Tensor) -> bool:
        # A device would not say which argument was wrong; on a CPU the embedding does.
        return self.model.device.type != "cpu" and super()._ids_need_a_check(tokens)

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

    def _logits(self, tokens: torch.Tensor, step: _Step, hidden_layers: int) -> ForwardOutput:
        hidden = self.model._hidden_room(len(tokens), hidden_layers)
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
        model, drafter = self.model, self.model.drafter
        hidden = model._hidden_room(len(tokens), hidden_layers)
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

    def draft_steps(self, request: DraftRequest) -> int:
        """Several steps in one native call; see ``drafting.draft_steps``."""
        if request.steps == 0:
            return 0
        drafter = self.model.drafter
        assert drafter is not None, "new_state chooses this class for models that have one"
        taken = drafter.draft(self.draft_sequence(request))
        self.draft_done(request, taken)
        return taken

    def draft_sequence(self, request: DraftRequest) -> ops.DraftSequence:
        """What ``draft_steps`` asks of the drafter."""
        if self.num_nodes:
            raise ValueError(f"draft with {self.num_nodes} pending nodes; commit or roll back")
        sampler, params, out = request.sampler, request.sampler.params, request.out
        return ops.DraftSequence(
            self.cache.data,
            torch.tensor(request.tokens, dtype=torch.int64),
            prefix=self.length,
            branches=max(request.branches, 1),
            steps=request.steps,
            is_gumbel=is_gumbel(sampler.draw),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=params.seed,
            position=request.position,
            stop_below=request.stop_below,
            logits=out.logits,
            cutoff=out.cutoff,
            drawn=out.tokens,
            confidence=out.confidence,
        )

    def draft_done(self, request: DraftRequest, taken: int) -> None:
        """Tree and prefix after ``taken`` steps."""
        branches = request.branches
        if branches:
            parents = [*([-1] * branches), *range((taken - 1) * branches)]
            self.tree.grow(taken * branches, parents)
        else:
            self.cache.length += len(request.tokens) + taken - 1
