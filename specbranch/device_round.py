"""Rounds that live on the device: static shapes, lengths and decisions in device memory.

A ``RoundProgram`` is one round as a fixed sequence of launches, with no value read by the host:
draft arm and target arm, then verify, ``advance`` and ``kv_commit``. ``DeviceRounds`` runs it for
the engine: on CUDA as one captured graph with two parallel arms, one round ahead of what the host
has read; on a CPU launch by launch, which is how tests run it without a GPU.

What differs from the rounds of ``policies/``, which the host directs: a target forward always
reads gamma + 1 tokens, a branch stage always grows k_max branches of gamma tokens (those beyond the
adaptive k are not candidates), and the draft reads the last token of X + chain anew each round.
None of it changes what is committed at a given verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from . import ops
from .drafting import DraftBuffers, Sampler
from .models.llama import LlamaModel, LlamaState
from .models.protocol import CausalLM
from .ops.rounds import REPORT_HEAD, RoundState, advance
from .policies.ar import Autoregressive
from .sampling_params import SamplingParams
from .session import Committed, Session, Settings

Arm = Callable[[], None]


class Arms(Protocol):
    """Runs the two arms of a round."""

    def run(self, target: Arm, draft: Arm) -> None:
        """Both, to the end of both as far as later launches can see."""
        ...


class SerialArms:
    """One after the other."""

    def run(self, target: Arm, draft: Arm) -> None:
        """The draft's, then the target's."""
        draft()
        target()


class StreamArms:
    """The draft's arm on a stream of its own with high priority; forked and joined by events."""

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    def run(self, target: Arm, draft: Arm) -> None:
        """At the same time."""
        current = torch.cuda.current_stream(self._side.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            draft()
        target()
        current.wait_stream(self._side)


class RoundProgram:
    """One round of plain decoding; the base of the others.

    Args:
        target, draft: models with their states, whose caches the program writes.
        settings, params: as for ``Session``; parameters other than whether anything is cut may be
            changed by ``load`` later.
        room: most committed tokens.
        arms: how the two arms run.
    """

    plain = True
    gamma = 0

    def __init__(
        self,
        target: LlamaState,
        draft: LlamaState | None,
        settings: Settings,
        params: SamplingParams,
        room: int,
        arms: Arms,
    ) -> None:
        self.target, self.draft, self.params = target, draft, params
        self._settings, self._arms = settings, arms
        device = target.model.device
        self.gamma = 0 if self.plain else settings.gamma
        self.state = RoundState.empty(1, self.gamma, room, device)
        self._sampler = Sampler(params, settings.draw, self.gamma + 1, device)
        self._verdict = torch.zeros(3, 1, dtype=torch.int32, device=device)
        self._offsets = torch.arange(self.gamma + 1, dtype=torch.int32, device=device).view(1, -1)
        self._no_branches = torch.zeros(1, 0, dtype=torch.int32, device=device)
        self._no_count = torch.zeros(1, dtype=torch.int32, device=device)
        self._logits = torch.empty(
            self.gamma + 1, target.model.vocab_size, dtype=target.model.dtype, device=device
        )

    # ------------------------------------------------------------------ a request
    def load(self, tokens: list[int], params: SamplingParams) -> None:
        """Start from ``tokens`` (at least 2), all but the last of them in both caches."""
        state, count = self.state, len(tokens)
        state.tokens[0, :count] = torch.tensor(tokens)
        state.length.fill_(count)
        state.branch_point.fill_(count)
        state.target_prefix.fill_(count - 1)
        state.chain_length.zero_()
        state.round.zero_()
        state.target_inputs.zero_()
        state.target_inputs[0, 0] = tokens[-1]
        state.draft_inputs[0] = torch.tensor(tokens[-2:])
        self._load_params(params)

    def _load_params(self, params: SamplingParams) -> None:
        self.params = params
        self._sampler.load(params)

    # ------------------------------------------------------------------ a round
    def run(self) -> None:
        """Launch one round."""
        with torch.inference_mode():
            self._speculate()
            self._verify()
            self._advance()

    def _speculate(self) -> None:
        self._target_arm()

    def _target_arm(self) -> None:
        """Logits after X's last token and after each of the chain (garbage behind its end)."""
        positions = self.state.target_prefix + self._offsets
        tokens = self.state.target_inputs[0]
        prefix = self.state.target_prefix
        self._logits.copy_(self.target.run(tokens, positions, positions, prefix, None))

    def _candidates(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._no_branches, self._no_count

    def _chain_logits(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return None, None

    def _verify(self) -> None:
        state, sampler = self.state, self._sampler
        draft_logits, draft_cutoff = self._chain_logits()
        cutoff = sampler.cut(self._logits)
        ops.verify(
            self._logits.unsqueeze(0),
            draft_logits,
            state.chain,
            state.chain_length,
            *self._candidates(),
            sampler.temperature[:1],
            sampler.seed[:1],
            state.length.to(torch.int64),
            target_cutoff=None if cutoff is None else cutoff.unsqueeze(0),
            draft_cutoff=draft_cutoff,
            draw=self._settings.draw,
            out=tuple(self._verdict),
        )

    def _advance(self) -> None:
        accepted, token, survivor = self._verdict
        drafted = self.state.chain.new_empty(1, self.gamma, 0)
        advance(self.state, accepted, token, survivor, drafted, drafted.float(), epsilon=0.0)


class SpsProgram(RoundProgram):
    """Speculative sampling: gamma steps of the draft, then the target."""

    plain = False

    def __init__(
        self,
        target: LlamaState,
        draft: LlamaState | None,
        settings: Settings,
        params: SamplingParams,
        room: int,
        arms: Arms,
    ) -> None:
        super().__init__(target, draft, settings, params, room, arms)
        assert draft is not None, "this policy needs a draft"
        self._drafter = draft
        model, gamma = draft.model, self.gamma
        self.width = self._num_rows()
        self._draft_sampler = Sampler(params, settings.draw, self.width, model.device)
        self._buffers = DraftBuffers(gamma, self.width, model.vocab_size, model.dtype, model.device)
        self._chain_rows = torch.zeros(
            1, gamma, model.vocab_size, dtype=model.dtype, device=model.device
        )
        self._chain_cutoff = torch.zeros(1, gamma, dtype=torch.float32, device=model.device)

    def _num_rows(self) -> int:
        return 1

    def _load_params(self, params: SamplingParams) -> None:
        super()._load_params(params)
        self._draft_sampler.load(params)

    def _draw(self, step: int, logits: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Tokens ``[rows]`` int64 for the next step, from ``logits [rows, V]``; kept in buffers."""
        out, sampler = self._buffers, self._draft_sampler
        rows = out.logits[step]
        rows.copy_(logits)
        drawn = sampler.draw_drafts(rows, sampler.cut(rows, out.cutoff[step]), position)
        out.tokens[step].copy_(drawn.token)
        out.confidence[step].copy_(drawn.max_probability)
        # A bad row (-1) is found by what reads the tokens in the buffer.
        inputs: torch.Tensor = drawn.token.clamp(min=0).to(torch.int64)
        return inputs

    def _chain_logits(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        has_cutoff = self._sampler.params.has_cutoff
        return self._chain_rows, self._chain_cutoff if has_cutoff else None

    def _speculate(self) -> None:
        self._draft_chain()
        self._target_arm()

    def _draft_chain(self) -> None:
        """The chain, drafted after the last two tokens: the cache may lack the first of them."""
        state, gamma = self.state, self.gamma
        tokens, count = state.draft_inputs[0], 2
        first = state.length - 2
        for step in range(gamma):
            positions = first + self._offsets[:, :count] if count > 1 else first.view(1, 1)
            logits = self._drafter.run(tokens, positions, positions, first, None)[-1:]
            first = first + count
            tokens, count = self._draw(step, logits, first.to(torch.int64)), 1
        state.chain.copy_(self._buffers.tokens.view(1, gamma))
        state.chain_length.copy_((self._buffers.tokens.view(1, gamma) >= 0).cumprod(1).sum(1))
        state.target_inputs[0, 1:] = state.chain[0].clamp(min=0)
        self._chain_rows.copy_(self._buffers.logits.view(1, gamma, -1))
        self._chain_cutoff.copy_(self._buffers.cutoff.view(1, gamma))


class SpecBranchProgram(SpsProgram):
    """SpecBranch with ``draft_stage="overlap"``: both arms at the same time."""

    def __init__(
        self,
        target: LlamaState,
        draft: LlamaState | None,
        settings: Settings,
        params: SamplingParams,
        room: int,
        arms: Arms,
    ) -> None:
        super().__init__(target, draft, settings, params, room, arms)
        gamma, width, device = self.gamma, self.width, self._logits.device
        steps = torch.arange(gamma, dtype=torch.int32, device=device).view(-1, 1)
        rows = torch.arange(width, dtype=torch.int32, device=device).view(1, -1)
        self._depth = steps.expand(gamma, width).contiguous()
        self._node = steps * width + rows
        self._bits = [_branch_bits(step, width).to(device) for step in range(gamma)]
        self._found = ops.BranchResult(
            torch.zeros(1, width, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.float32, device=device),
        )

    def _num_rows(self) -> int:
        return self._settings.k_max

    def _candidates(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._found.candidates, self._found.num_branches

    def _speculate(self) -> None:
        self._arms.run(self._target_arm, self._draft_arm)

    def _draft_arm(self) -> None:
        """Candidates at the branch point, then gamma tokens behind each."""
        point = self.state.branch_point
        last = (point - 1).view(1, 1)
        logits = self._drafter.run(self.state.draft_inputs[0, 1:], last, last, last[0], None)
        sampler = self._draft_sampler
        ops.branch_topk(
            logits,
            self.width,
            sampler.temperature[:1],
            cutoff=sampler.cut(logits),
            seed=sampler.seed[:1],
            position=point.to(torch.int64),
            draw=self._settings.draw,
            out=self._found,
        )
        tokens = self._found.candidates[0].clamp(min=0).to(torch.int64)
        positions, slots = point + self._depth, point + self._node
        drawn_at = positions.to(torch.int64) + 1
        for step in range(self.gamma):
            rows = self._drafter.run(
                tokens, positions[step : step + 1], slots[step : step + 1], point, self._bits[step]
            )
            tokens = self._draw(step, rows, drawn_at[step])

    def _advance(self) -> None:
        out, state = self._buffers, self.state
        accepted, token, survivor = self._verdict
        advance(
            state,
            accepted,
            token,
            survivor,
            out.tokens.unsqueeze(0),
            out.confidence.unsqueeze(0),
            epsilon=self._settings.epsilon,
            num_branches=self._found.num_branches,
        )
        ops.kv_commit(
            self._drafter.cache.data,
            state.commit_slots,
            state.commit_start,
            state.commit_length,
            backend=self._drafter.model.backend,
        )
        branch = survivor.clamp(min=0)
        torch.index_select(out.logits, 1, branch, out=self._chain_rows.view(self.gamma, 1, -1))
        torch.index_select(out.cutoff, 1, branch, out=self._chain_cutoff.view(self.gamma, 1))


def _branch_bits(step: int, width: int) -> torch.Tensor:
    """What each branch's token of a step sees of the tree: its own branch."""
    words = ((step + 1) * width + 31) // 32
    bits = torch.zeros(width, words, dtype=torch.int64)
    for row in range(width):
        for node in range(row, step * width + row + 1, width):
            bits[row, node // 32] |= 1 << (node % 32)
    signed = torch.where(bits >= 1 << 31, bits - (1 << 32), bits)
    return signed.to(torch.int32).unsqueeze(0)


PROGRAMS: dict[str, type[RoundProgram]] = {
    "ar": RoundProgram,
    "sps": SpsProgram,
    "specbranch": SpecBranchProgram,
}


class Runner:
    """Launches the rounds of a program and reads their reports.

    ``ahead``: rounds launched before the host waits for one.
    """

    ahead = 1

    def __init__(self, program: RoundProgram) -> None:
        self.program = program

    def take_states(self) -> tuple[LlamaState, LlamaState | None]:
        """The program's states, emptied for a new request."""
        self.restart()
        target, draft = self.program.target, self.program.draft
        for state in (target, draft):
            if state is not None:
                state.rollback(0)
        return target, draft

    def restart(self) -> None:
        """Count rounds from 0."""

    def launch(self) -> None:
        """One more round."""
        raise NotImplementedError

    def report(self, number: int) -> list[int]:
        """What round ``number`` since ``restart`` reported, once it has."""
        raise NotImplementedError


class EagerRunner(Runner):
    """Op by op; on a CPU each is done when the call returns."""

    def launch(self) -> None:
        """One more round."""
        self.program.run()

    def report(self, number: int) -> list[int]:
        """What round ``number`` reported."""
        rows = self.program.state.report
        report: list[int] = rows[number % len(rows), 0].tolist()
        return report


class GraphRunner(Runner):
    """A round as one captured CUDA graph; the host reads reports from pinned memory.

    The device never waits for the host: it always has a round more than the host has read. The
    report ring must have more rows than ``ahead``.
    """

    ahead = 2

    def __init__(self, program: RoundProgram) -> None:
        super().__init__(program)
        report = program.state.report
        self._host = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
        self._events = [
            torch.cuda.Event()  # type: ignore[no-untyped-call]
            for _ in range(len(report))
        ]
        self._launched = 0
        self._stream = torch.cuda.Stream(report.device)  # type: ignore[no-untyped-call]
        self._graph = self._capture()

    def _capture(self) -> torch.cuda.CUDAGraph:
        program = self.program
        with torch.cuda.stream(self._stream):
            program.load([0, 0], program.params)
            for _ in range(2):  # libraries choose and allocate on their first calls
                program.run()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                program.run()
                self._host.copy_(program.state.report, non_blocking=True)
        return graph

    def launch(self) -> None:
        """One more round, behind what the caller's stream has been given."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._graph.replay()
            self._events[self._launched % len(self._events)].record(self._stream)
        self._launched += 1

    def restart(self) -> None:
        """Count rounds from 0: a request begins."""
        self._stream.synchronize()  # rounds of the one before may still run
        self._launched = 0

    def report(self, number: int) -> list[int]:
        """Wait for round ``number`` since ``restart`` and read what it reported."""
        self._events[number % len(self._events)].synchronize()
        report: list[int] = self._host[number % len(self._host), 0].tolist()
        return report


class DeviceRounds:
    """A policy whose rounds run on the device; the engine makes one a request.

    Args:
        runner: of a program whose states are the session's.
    """

    needs_draft = True
    overlaps = False

    def __init__(self, runner: Runner) -> None:
        self.runner, self.program = runner, runner.program
        self._launched = self._read = 0

    def round(self, session: Session) -> Committed:
        """Launch what is due and wait for the next round's report."""
        if self._launched == 0:
            if session.length < 2:  # the device's bookkeeping starts from two tokens
                return Autoregressive().round(session)
            self._start(session)
        started = time.perf_counter()
        while self._launched - self._read < self.runner.ahead:
            self.runner.launch()
            self._launched += 1
        waiting = time.perf_counter()
        row = self.runner.report(self._read)
        waited = time.perf_counter() - waiting
        self._read += 1
        committed = self._committed(session, row)
        session.stats.host_seconds += time.perf_counter() - started - waited
        return committed

    def _start(self, session: Session) -> None:
        tokens = session.tokens
        if session.has_draft:
            missing = tokens[session.draft.length : -1]
            session.draft.prefill(torch.tensor(missing, dtype=torch.int64))
        self.runner.restart()
        self.program.load(tokens, session.params)

    def _committed(self, session: Session, row: list[int]) -> Committed:
        """What a round's report adds to the request."""
        accepted, verified, survivor, token, kept, branches = row[:REPORT_HEAD]
        if accepted < 0:
            raise ValueError(
                f"target or draft gave NaN logits between positions {session.length} and "
                f"{session.length + verified}"
            )
        program = self.program
        last = _origin(program.plain, accepted < verified, survivor)
        tokens = [*row[REPORT_HEAD : REPORT_HEAD + accepted], token]
        self._count(session, accepted, verified, survivor, kept, branches)
        session.tokens += tokens
        session.stats.committed += len(tokens)
        return Committed(tokens, ["chain"] * accepted + [last])

    def _count(
        self,
        session: Session,
        accepted: int,
        verified: int,
        survivor: int,
        kept: int,
        branches: int,
    ) -> None:
        """The counters that a round of ``policies/`` keeps."""
        stats, gamma = session.stats, self.program.gamma
        stats.rounds += 1
        stats.target_forwards += 1
        stats.accepted += accepted + (survivor >= 0)
        stats.accepted_chain += accepted
        stats.rejections += accepted < verified
        stats.rolled_back += verified - accepted
        if isinstance(self.program, SpecBranchProgram):
            stats.draft_forwards += 1 + gamma
            stats.drafted += 1 + gamma
            stats.sibling_tokens += max(branches - 1, 0) * (1 + gamma)
            stats.branch_points += accepted == verified
            stats.branch_hits += survivor >= 0
            stats.pruned += gamma - kept if survivor >= 0 else 0
            stats.rolled_back += 0 if survivor >= 0 else 1 + gamma
        elif not self.program.plain:
            stats.draft_forwards += gamma
            stats.drafted += gamma


def _origin(plain: bool, rejected: bool, survivor: int) -> str:
    if plain:
        return "plain"
    if rejected:
        return "recovered"
    return "branch" if survivor >= 0 else "bonus"


def new_runner(
    policy: str,
    target: CausalLM,
    draft: CausalLM | None,
    settings: Settings,
    params: SamplingParams,
    max_seq_len: int,
) -> Runner:
    """States, program and, on CUDA, the captured graph for requests of this kind.

    Raises:
        ValueError: there is no program for the policy, the models or the settings.
    """
    if policy not in PROGRAMS:
        raise ValueError(f"policy was {policy!r}; on the device it must be {', '.join(PROGRAMS)}")
    if policy == "specbranch" and settings.draft_stage != "overlap":
        raise ValueError('draft_stage was "serial"; on the device it must be "overlap"')
    ahead = GraphRunner.ahead * (settings.gamma + 1)  # tokens of rounds that nobody will read
    room = max_seq_len + ahead
    pending = ahead + 2 + settings.gamma * settings.k_max
    target_state = _state_of("target", target, max_seq_len, ahead + settings.gamma + 1)
    draft_state = None
    if policy != "ar":
        assert draft is not None, "the engine checks that there is one"
        draft_state = _state_of("draft", draft, max_seq_len, pending)
    on_cuda = target_state.model.device.type == "cuda"
    arms = StreamArms(target_state.model.device) if on_cuda else SerialArms()
    program = PROGRAMS[policy](target_state, draft_state, settings, params, room, arms)
    return GraphRunner(program) if on_cuda else EagerRunner(program)


def _state_of(name: str, model: CausalLM, max_seq_len: int, tree_slots: int) -> LlamaState:
    if not isinstance(model, LlamaModel):
        raise ValueError(f"{name} was {type(model).__name__}; on the device it must be LlamaModel")
    return model.new_state(max_seq_len, tree_slots)
