"""The runners of an engine: made when a request first needs one, kept for the next."""

from __future__ import annotations

from contextlib import suppress

from ..models.llama import LlamaModel, LlamaState
from ..models.protocol import CausalLM
from ..sampling_params import SamplingParams, check_int
from ..session import Settings
from .graphs import CudaRunner, GraphRunner, PairRunner
from .parcel import Devices
from .program import RoundProgram
from .runner import EagerRunner, Runner
from .specbranch import SpecBranchProgram
from .sps import SpsProgram
from .streams import Streams

PROGRAMS: dict[str, type[RoundProgram]] = {
    "ar": RoundProgram,
    "sps": SpsProgram,
    "specbranch": SpecBranchProgram,
}
MAX_FREE = 2  # each holds caches of max_seq_len tokens and a graph


def why_not_on_device(
    policy: str, settings: Settings, target: CausalLM, draft: CausalLM | None
) -> str | None:
    """What keeps rounds from the device, as an error says it; None: nothing does."""
    if policy not in PROGRAMS:
        return f"policy was {policy!r}; on the device it must be {', '.join(PROGRAMS)}"
    if policy == "specbranch" and settings.draft_stage != "overlap":
        return f'draft_stage was "{settings.draft_stage}"; on the device it must be "overlap"'
    for name, model in (("target", target), ("draft", draft)):
        if model is not None and not isinstance(model, LlamaModel):
            return f"{name} was {type(model).__name__}; on the device it must be LlamaModel"
    if draft is not None and draft.device.type != target.device.type:
        return (
            f"draft was on {draft.device} and target on {target.device}; on the device both must "
            f"be on {target.device.type}"
        )
    return None


class RunnerPool:
    """Runners for the requests of one engine: one kind for those that cut logits, one for others.

    Policy, gamma, k_max and lengths are the engine's, so a kind is one captured graph. ``take`` may
    capture, which must not meet other launches of the engine; ``give_back`` may be called any time,
    also by a collected generator, and takes no lock.

    Args:
        policy, target, draft, settings, max_seq_len: the engine's.
        draft_sms: see ``Streams``.

    Raises:
        ValueError: there is no program for the policy, the models or the settings.
    """

    def __init__(
        self,
        policy: str,
        target: CausalLM,
        draft: CausalLM | None,
        settings: Settings,
        max_seq_len: int,
        draft_sms: int | None = None,
    ) -> None:
        reason = why_not_on_device(policy, settings, target, draft)
        if reason is not None:
            raise ValueError(reason)
        self._program, self._models = PROGRAMS[policy], (target, draft)
        self._settings, self._max_seq_len = settings, max_seq_len
        self._streams = self._new_streams(draft_sms)
        self.free: list[Runner] = []  # the one used last is the last

    def _new_streams(self, draft_sms: int | None) -> Streams | None:
        target, draft = self._models
        if draft_sms is not None:
            check_int("draft_sms", draft_sms, 1)
            if not self._on_cuda() or draft is None:
                where = "no draft" if draft is None else f"a draft on {draft.device}"
                raise ValueError(
                    f"draft_sms was {draft_sms} with {where}; it needs a draft on a CUDA device"
                )
        if not self._on_cuda():
            return None
        draft_device = target.device if draft is None else draft.device
        return Streams(Devices(target.device, draft_device), draft_sms)

    def _on_cuda(self) -> bool:
        return self._models[0].device.type == "cuda"

    def take(self, params: SamplingParams) -> Runner:
        """A free runner for such a request, or a new one."""
        for runner in reversed(self.free.copy()):
            if runner.has_cutoff == params.has_cutoff:
                with suppress(ValueError):  # another thread was faster
                    self.free.remove(runner)
                    return runner
        return self._new_runner(params)

    def give_back(self, runner: Runner) -> None:
        """Keep a runner for a later request, or drop the one that was not used for longest."""
        self.free.append(runner)
        del self.free[:-MAX_FREE]

    def _new_runner(self, params: SamplingParams) -> Runner:
        """States, program and, on CUDA, the captured graph."""
        kind = self._kind()
        gamma, k_max = self._settings.gamma, self._settings.k_max
        ahead = kind.ahead * (gamma + 1)  # tokens of rounds that nobody will read
        target = self._new_state(self._models[0], ahead + gamma + 1)
        draft = None
        if self._program.needs_draft:
            draft = self._new_state(self._models[1], ahead + 2 + gamma * k_max)
        program = self._program(target, draft, self._settings, params, self._max_seq_len + ahead)
        if self._streams is None:
            return EagerRunner(program)
        assert issubclass(kind, CudaRunner), "there are streams"
        return kind(program, self._streams)

    def _kind(self) -> type[Runner]:
        if self._streams is None:
            return EagerRunner
        return PairRunner if self._streams.devices.apart else GraphRunner

    def _new_state(self, model: CausalLM | None, tree_slots: int) -> LlamaState:
        assert isinstance(model, LlamaModel), "checked when the pool was made"
        return model.new_state(self._max_seq_len, tree_slots)
