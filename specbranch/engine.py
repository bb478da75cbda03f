"""The engine: requests, one or several, through a policy, streamed as they are committed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar, cast, overload

from . import ops
from .batching import Batch, BatchReport, Hub, SharedModel
from .batching.batch import named
from .chat import Message
from .inputs import Prompt, check_prompts, is_batch, params_of_each, prompt_tokens
from .lanes import Lanes, SerialLanes, StreamLanes, ThreadLanes
from .models.protocol import CausalLM, check_same_vocabulary
from .policies import DEFAULTS, POLICIES, LearningPolicy, Policy, TreePolicy
from .predictor import HRad, Predictor
from .request import Event, GenerationResult, Request
from .rounds import DeviceRounds, Runner, RunnerPool, why_not_on_device
from .sampling_params import SamplingParams, check_int
from .session import Session, Settings
from .text import TextStream
from .timeline import Timeline
from .tokenizer import Tokenizer

__all__ = ["Engine", "Event", "GenerationResult", "Prompt"]

Done = TypeVar("Done")
MAX_BATCH = 8


class Engine:
    """Generates text from a target model with the help of a draft, without changing the output.

    Args:
        target: the model whose distribution is kept, any ``CausalLM``.
        draft: the small model that guesses; not needed by ``ar``, ``ngram`` and ``lookahead``. It
            may be on another device than the target.
        tokenizer: None takes and gives token ids only.
        policy: ``"ar"``, ``"sps"``, ``"specbranch"``, ``"fanout"``, ``"pearl"``, ``"adaedl"``,
            ``"lookahead"``, ``"ngram"`` or ``"auto"``; see ``policies``.
        gamma, k_max, epsilon, draft_stage, verify, max_ngram, window: see ``Settings``; None takes
            its default.
        max_seq_len: most tokens of prompt and output together; the models' own limit by default.
        predictor: H-RAD (``HRad.load``), read by ``policy="specbranch"``; None lets the draft's
            confidence decide alone.
        threads: CPU cores to use, all by default.
        lanes: where the two models run; by default threads for policies that overlap.
        rounds: ``"host"`` directs each round from Python; ``"device"`` keeps the round's state on
            the device (on CUDA: one captured graph a round); None: device where the target is on
            CUDA and policy, settings and models allow it.
        draft_sms: multiprocessors of its GPU that the draft may use, at least 1, for rounds on a
            CUDA device; None: all of them. The driver rounds it up, on Hopper to a multiple of 8.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """

    def __init__(
        self,
        target: CausalLM,
        draft: CausalLM | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        policy: str = "specbranch",
        gamma: int | None = None,
        k_max: int | None = None,
        epsilon: float | None = None,
        draft_stage: str | None = None,
        verify: str | None = None,
        max_ngram: int | None = None,
        window: int | None = None,
        max_seq_len: int | None = None,
        predictor: Predictor | None = None,
        threads: int | None = None,
        lanes: Lanes | None = None,
        rounds: str | None = None,
        draft_sms: int | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy was {policy!r}; it must be one of {', '.join(POLICIES)}")
        given = {
            "gamma": gamma,
            "k_max": k_max,
            "epsilon": epsilon,
            "draft_stage": draft_stage,
            "verify": verify,
            "max_ngram": max_ngram,
            "window": window,
        }
        chosen = {key: val for key, val in given.items() if val is not None}
        self.settings = Settings(**DEFAULTS.get(policy, {}) | chosen)  # type: ignore[arg-type]
        method = self._method = POLICIES[policy](predictor)
        if method.needs_draft and draft is None:
            raise ValueError(f"draft was None; policy {policy!r} needs a draft model")
        self.target, self.draft = target, draft if method.needs_draft else None
        self.tokenizer, self.policy, self.predictor = tokenizer, policy, predictor
        self._target_nodes = None
        if isinstance(method, TreePolicy):
            self._target_nodes = method.target_nodes(self.settings)
        _check_vocabularies(target, self.draft, tokenizer)
        if isinstance(predictor, HRad):
            predictor.check_target(target)
        self.max_seq_len = self._max_seq_len(max_seq_len)
        if threads is not None:
            check_int("threads", threads, 1)
        self._serial = SerialLanes(threads)
        self.lanes: Lanes = lanes or self._default_lanes(threads, method.overlaps)
        self._threads: int = getattr(self.lanes, "threads", 0)  # of a round in all; 0: all cores
        if isinstance(method, LearningPolicy):
            self._begin(method, draft_stage)
        self._pool = self._new_pool(rounds, draft_sms)
        self._round_lock = threading.Lock()
        self._active: list[Request | Batch] = []
        self.last_result: GenerationResult | None = None
        self.last_batch: BatchReport | None = None

    def _begin(self, method: LearningPolicy, draft_stage: str | None) -> None:
        """Let a policy that learns get ready; refuse what it could not heed."""
        if draft_stage is not None:
            raise ValueError(
                f"draft_stage was {draft_stage!r}; policy {self.policy!r} chooses it, so it must "
                "be None"
            )
        for name, model in (("target", self.target), ("draft", self.draft)):
            if model is not None and model.device.type != "cpu":
                raise ValueError(
                    f"{name} was on {model.device}; policy {self.policy!r} times forwards by the "
                    "host's clock, so both models must be on a CPU"
                )
        method.begin(self.settings, self.lanes)

    def _new_policy(self) -> Policy:
        """For one request; a policy that learns goes on from what the last one knew."""
        if isinstance(self._method, LearningPolicy):
            self._method = self._method.renew()
            return self._method
        return POLICIES[self.policy](self.predictor)

    def _default_lanes(self, threads: int | None, overlaps: bool) -> Lanes:
        if not overlaps:
            return self._serial
        devices = [model.device for model in (self.target, self.draft) if model is not None]
        if all(device.type == "cuda" for device in devices):
            return StreamLanes(devices[0], devices[-1])
        return ThreadLanes(threads)

    def _new_pool(self, rounds: str | None, draft_sms: int | None) -> RunnerPool | None:
        """What runs rounds on the device; None: the host directs them."""
        if rounds not in (None, "host", "device"):
            raise ValueError(f"rounds was {rounds!r}; it must be host or device")
        if rounds == "device" and self.predictor is not None:
            raise ValueError("predictor was given; with rounds='device' it must be None")
        if rounds is None:
            reason = why_not_on_device(self.policy, self.settings, self.target, self.draft)
            fits = reason is None and self.predictor is None
            rounds = "device" if self.target.device.type == "cuda" and fits else "host"
        if rounds == "device":
            models = (self.target, self.draft)
            return RunnerPool(self.policy, *models, self.settings, self.max_seq_len, draft_sms)
        if draft_sms is not None:
            raise ValueError(
                f"draft_sms was {draft_sms!r}; it needs rounds='device' and a draft on CUDA"
            )
        return None

    def _runner(self, params: SamplingParams) -> Runner | None:
        """A runner for the request; taken between rounds, since a capture must not meet them."""
        if self._pool is None:
            return None
        with self._round_lock:
            return self._pool.take(params)

    def _max_seq_len(self, asked: int | None) -> int:
        models = [model for model in (self.target, self.draft) if model is not None]
        limit = min(model.max_seq_len for model in models)
        if asked is None:
            return limit
        check_int("max_seq_len", asked, 2, limit)
        return asked

    # ------------------------------------------------------------------ public calls
    @property
    def rounds(self) -> str:
        """Who directs the rounds: ``"host"`` or ``"device"``."""
        return "host" if self._pool is None else "device"

    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...] | Sequence[Sequence[int]] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        timeline: None = None,
        max_batch: int = MAX_BATCH,
    ) -> list[GenerationResult]: ...

    @overload
    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        timeline: Timeline | None = None,
    ) -> GenerationResult: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        timeline: Timeline | None = None,
        max_batch: int = MAX_BATCH,
    ) -> GenerationResult | list[GenerationResult]:
        """Generate to the end.

        Args:
            prompt: text (needs a tokenizer); token ids, at least one; or the messages of a chat,
                dicts with ``role`` and ``content`` (needs a tokenizer with a chat template). A
                list of prompts is a batch, see ``events_batch``: results come in its order.
            params: defaults to ``SamplingParams()``; of a batch one for all, or a list.
            timeline: is filled with what the two lanes do; not for rounds on the device, nor for a
                batch.
            max_batch: most requests of a batch at a time.

        Raises:
            TypeError, ValueError: for a prompt or a length that does not fit, naming it.
        """
        if is_batch(prompt):
            if timeline is not None:
                raise ValueError("timeline was given; for a batch it must be None")
            batch = self._open_batch(prompt, params, max_batch)
            for _ in self._events_of(batch):
                pass
            return batch.report().results
        request = self._open(cast(Prompt, prompt), params, timeline)
        for _ in self._events(request):
            pass
        assert request.result is not None, "the loop above has ended the request"
        return request.result

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        timeline: Timeline | None = None,
    ) -> Generator[str, None, None] | Generator[list[int], None, None]:
        """Yield text as it is committed, never half a character; lists of ids with no tokenizer.

        Closing the iterator cancels the request. ``last_result`` holds the result after the end.
        """
        events = self.events(prompt, params, timeline=timeline)
        return _ids(events) if self.tokenizer is None else _texts(events)

    def events(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        timeline: Timeline | None = None,
    ) -> Generator[Event, None, None]:
        """Like ``stream``, with the tokens of each round and where they came from."""
        return self._events(self._open(prompt, params, timeline))

    def events_batch(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        max_batch: int = MAX_BATCH,
    ) -> Generator[tuple[int, Event], None, None]:
        """Decode several prompts side by side: pairs of a prompt's index and what a round added.

        At most ``max_batch`` requests share each forward of a model; where one is finished the
        next prompt enters. Each one's tokens and counts are those it has alone. Closing the
        iterator cancels all; ``last_batch`` holds the results after the end.

        Raises:
            TypeError, ValueError: for what does not fit, naming it; nothing has been decoded then.
                Also for rounds on the device and for a policy that learns, which go one by one.
        """
        return self._events_of(self._open_batch(prompts, params, max_batch))

    def cancel(self) -> None:
        """End every running request after its round; may be called from another thread."""
        for request in list(self._active):
            request.cancelled.set()

    # ------------------------------------------------------------------ the loop
    def _events(self, request: Request) -> Generator[Event, None, None]:
        self._active.append(request)
        with self._round_lock:  # another request's rounds may teach the same policy
            policy = self._new_policy()
        if request.runner is not None:
            policy = DeviceRounds(request.runner)
        self.last_result = None
        try:
            reads = not isinstance(policy, LearningPolicy) or policy.wants_draft()
            self._step(partial(request.session.prefill, draft=reads))
            while not request.finish_reason:
                if request.cancelled.is_set():
                    break
                committed = self._step(lambda: policy.round(request.session))
                yield request.accept(committed)
            yield from request.rest()
        finally:
            request.finish_reason = request.finish_reason or "cancelled"
            self._active.remove(request)
            if request.runner is not None and self._pool is not None:
                self._pool.give_back(request.runner)
            self.last_result = request.finish()

    def _events_of(self, batch: Batch) -> Generator[tuple[int, Event], None, None]:
        self._active.append(batch)
        self.last_batch = None
        try:
            while batch.goes_on:
                yield from self._step(batch.step)
            yield from batch.rest()
        finally:
            batch.end()
            self._active.remove(batch)
            self.last_batch = batch.report()

    def _step(self, work: Callable[[], Done]) -> Done:
        """One round at a time, whoever asks."""
        with self._round_lock, ops.limit_threads(self._threads):
            return work()

    # ------------------------------------------------------------------ opening a request
    def _open(
        self,
        prompt: Prompt,
        params: SamplingParams | Sequence[SamplingParams] | None,
        timeline: Timeline | None,
    ) -> Request:
        started = time.perf_counter()
        tokens, checked = self._checked(prompt, params)
        if timeline is not None and self._pool is not None:
            raise ValueError("timeline was given; with rounds on the device it must be None")
        runner = self._runner(checked)
        session = Session(
            self.target,
            self.draft,
            tokens,
            checked,
            self.settings,
            self.lanes,
            hidden_layers=self._hidden_layers,
            target_nodes=self._target_nodes,
            states=runner.take_states() if runner is not None else None,
            timeline=timeline,
        )
        return self._request(session, started, runner)

    def _checked(
        self, prompt: Prompt, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> tuple[list[int], SamplingParams]:
        """Token ids and parameters, which fit each other and the engine."""
        params = params or SamplingParams()
        if not isinstance(params, SamplingParams):
            raise TypeError(f"params was {type(params).__name__}; it must be SamplingParams")
        if params.stop and self.tokenizer is None:
            raise ValueError("stop was given; stop strings need an engine with a tokenizer")
        tokens = prompt_tokens(prompt, self.tokenizer, self.target.vocab_size)
        total = len(tokens) + params.max_new_tokens
        if total > self.max_seq_len:
            raise ValueError(
                f"max_new_tokens was {params.max_new_tokens} after a prompt of {len(tokens)} "
                f"tokens; together they must be at most {self.max_seq_len}"
            )
        return tokens, params

    @property
    def _hidden_layers(self) -> int:
        return 0 if self.predictor is None else self.predictor.hidden_layers

    def _request(self, session: Session, started: float, runner: Runner | None) -> Request:
        params = session.params
        eos = frozenset() if params.ignore_eos else frozenset(self.target.eos_token_ids)
        stream = TextStream(self.tokenizer, params.stop)
        return Request(session, stream, eos, self.tokenizer is not None, started, runner)

    def _open_batch(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        max_batch: int,
    ) -> Batch:
        check_prompts(prompts)
        check_int("max_batch", max_batch, 1)
        if isinstance(self._method, LearningPolicy):
            raise ValueError(
                f"policy was {self.policy!r}, which times the forwards of a single request; for a "
                "batch it must be another"
            )
        if self._pool is not None:
            raise ValueError("rounds was 'device'; for a batch it must be 'host'")
        inputs = []
        pairs = zip(prompts, params_of_each(params, len(prompts)), strict=True)
        for index, (prompt, wanted) in enumerate(pairs):
            try:
                inputs.append(self._checked(prompt, wanted))
            except (ValueError, TypeError) as error:
                raise named(error, [index]) from error
        hub = self._new_hub()
        return Batch(
            hub,
            [partial(self._join, hub, *each) for each in inputs],
            self._new_policy,
            [len(tokens) for tokens, _ in inputs],
            has_text=self.tokenizer is not None,
            max_batch=max_batch,
        )

    def _new_hub(self) -> Hub:
        """Where the requests of a batch meet; it works on as many cores as one request does."""
        lanes = self.lanes if self._method.overlaps else self._serial
        threads: int | None = getattr(lanes, "threads", None)
        beside = lanes.target_threads if isinstance(lanes, ThreadLanes) else None
        return Hub(self.target, self.draft, threads=threads, target_threads=beside)

    def _join(self, hub: Hub, tokens: list[int], params: SamplingParams) -> Request:
        """A request whose forwards are the hub's."""
        started = time.perf_counter()
        session = Session(
            SharedModel(hub, hub.target),
            None if self.draft is None else SharedModel(hub, hub.draft),
            tokens,
            params,
            self.settings,
            self.lanes,
            hidden_layers=self._hidden_layers,
            target_nodes=self._target_nodes,
        )
        return self._request(session, started, None)


def _texts(events: Generator[Event, None, None]) -> Generator[str, None, None]:
    with closing(events):
        for event in events:
            if event.text:
                yield event.text


def _ids(events: Generator[Event, None, None]) -> Generator[list[int], None, None]:
    with closing(events):
        for event in events:
            if event.tokens:
                yield event.tokens


def _check_vocabularies(
    target: CausalLM, draft: CausalLM | None, tokenizer: Tokenizer | None
) -> None:
    if draft is not None:
        check_same_vocabulary(target, draft)
    if tokenizer is not None and tokenizer.vocab_size > target.vocab_size:
        raise ValueError(
            f"tokenizer has {tokenizer.vocab_size} tokens; "
            f"it must have at most the target's {target.vocab_size}"
        )
