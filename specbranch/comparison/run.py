"""All methods on all prompts, taking turns, and their outputs held against ``ar``'s."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..engine import Engine
from ..models.protocol import CausalLM
from ..predictor import Predictor
from ..sampling_params import SamplingParams, check_int
from ..tokenizer import Tokenizer
from .equality import Difference, difference
from .measure import Contestant
from .methods import BASELINE, DEFAULT_METHODS, Method, plan_methods
from .record import load_average, record
from .result import Comparison, must_equal
from .runs import Run

WARM_UP_TOKENS = 16


def compare(
    target: CausalLM,
    draft: CausalLM | None,
    prompts: Sequence[str | Sequence[int]],
    methods: Sequence[str] = DEFAULT_METHODS,
    params: SamplingParams | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    predictor: Predictor | None = None,
    threads: int | None = None,
    repeat: int = 1,
    step: Callable[[str], None] = lambda note: None,
) -> Comparison:
    """Run every method on every prompt, interleaved, and hold the outputs against ``ar``'s.

    Each method runs once to warm up, then all take turns prompt by prompt, each time in another
    order, so that a machine that slows down slows all of them. Prompt ``i`` has the seed
    ``params.seed + i``.

    Args:
        target, draft: the pair; no draft: only methods that need none.
        prompts: texts (with a tokenizer) or token ids.
        methods: ``policy`` or ``policy:setting=value,...``; ``ar`` is added if it is not there.
        params: of every request.
        settings: of every method that they concern and that has none of its own.
        predictor: H-RAD; adds the method ``specbranch+hrad``.
        threads: CPU cores for every method, all by default.
        repeat: runs of each method on each prompt.
        step: called after each run with its method's name.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    planned = plan_methods(methods, settings, hrad=predictor is not None)
    needy = [method.name for method in planned if method.needs_draft]
    if draft is None and needy:
        raise ValueError(f"draft was None; {', '.join(needy)} need a draft model")
    check_int("repeat", repeat, 1)
    params = params or SamplingParams()
    tokens = _tokens(prompts, tokenizer)
    _check_lengths(tokens, params, [target] if draft is None or not needy else [target, draft])
    contestants = [Contestant(each, target, draft, predictor, threads) for each in planned]
    load = load_average()
    for contestant in contestants:
        warm_up(contestant, tokens[0], params)
    runs = list(interleaved(contestants, tokens, params, repeat, step))
    order = {method.name: idx for idx, method in enumerate(planned)}
    runs.sort(key=lambda run: (run.prompt, run.repeat, order[run.method]))
    return Comparison(
        methods=[replace(each.method, settings=each.settings) for each in contestants],
        prompt_tokens=[len(prompt) for prompt in tokens],
        params=params,
        repeat=repeat,
        runs=runs,
        differences=_differences(contestants, runs, tokens, params),
        about=_about(target, draft, contestants, threads) | {"load_average": load},
    )


def _about(
    target: CausalLM, draft: CausalLM | None, contestants: list[Contestant], threads: int | None
) -> dict[str, Any]:
    """Where it ran and on what."""
    models = {"target": target} if draft is None else {"target": target, "draft": draft}
    return record(list(models.values()), threads) | {
        "models": {
            name: {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")}
            for name, model in models.items()
        },
        "observed_apart": [each.method.name for each in contestants if each.observes_apart],
    }


def _tokens(prompts: Sequence[str | Sequence[int]], tokenizer: Tokenizer | None) -> list[list[int]]:
    """Token ids of all prompts; the engine checks their range."""
    if not prompts:
        raise ValueError("prompts was empty; there must be at least one")
    found = []
    for idx, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError(f"prompts[{idx}] was text; without a tokenizer it must be ids")
            prompt = tokenizer.encode(prompt)
        if not len(prompt):
            raise ValueError(f"prompts[{idx}] was empty; it must have at least one token")
        found.append([int(token) for token in prompt])
    return found


def _check_lengths(
    prompts: list[list[int]], params: SamplingParams, models: Sequence[CausalLM]
) -> None:
    """Before a run that may take hours, and not in the middle of it."""
    limit = min(model.max_seq_len for model in models)
    for idx, prompt in enumerate(prompts):
        if len(prompt) + params.max_new_tokens > limit:
            raise ValueError(
                f"max_new_tokens was {params.max_new_tokens} and prompt {idx} has {len(prompt)} "
                f"tokens; together they must be at most {limit}"
            )


class Runs(Protocol):
    """Whatever takes part: a ``Contestant``, or another library's method that looks like one."""

    @property
    def method(self) -> Method:
        """Its name counts."""
        ...

    def run(self, prompt: Sequence[int], params: SamplingParams, *, idx: int, repeat: int) -> Run:
        """Continue ``prompt``, the one with number ``idx``, and time it."""
        ...


def warm_up(contestant: Runs, prompt: Sequence[int], params: SamplingParams) -> None:
    """A short request: first calls allocate, compile and capture."""
    few = replace(params, max_new_tokens=min(params.max_new_tokens, WARM_UP_TOKENS))
    contestant.run(prompt, few, idx=0, repeat=0)


def interleaved(
    contestants: Sequence[Runs],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    repeat: int,
    step: Callable[[str], None],
) -> Iterator[Run]:
    """Everybody's turn on each prompt, each time in another order (the same ones every time).

    The order is shuffled, not rotated: who always follows the same one finds the caches that this
    one left, which is worth some percent to a small pair.
    """
    rng = random.Random(0)
    for idx, prompt in enumerate(prompts):
        seeded = _seeded(params, idx)
        for again in range(repeat):
            for contestant in rng.sample(contestants, len(contestants)):
                yield contestant.run(prompt, seeded, idx=idx, repeat=again)
                step(contestant.method.name)


def _seeded(params: SamplingParams, idx: int) -> SamplingParams:
    return replace(params, seed=params.seed + idx)


def _differences(
    contestants: list[Contestant],
    runs: list[Run],
    prompts: list[list[int]],
    params: SamplingParams,
) -> list[Difference]:
    """Runs that have to be ``ar``'s and are not."""
    bound = [each for each in contestants if must_equal(each.method, params)]
    names = {each.method.name for each in bound}
    wanted = _references(contestants, runs, prompts, params) if bound else {}
    found = []
    for run in runs:
        reference = wanted.get(run.prompt, run.tokens)
        if run.method not in names or run.tokens == reference:
            continue
        seeded = _seeded(params, run.prompt)
        found.append(difference(bound[0].target, prompts[run.prompt], run, reference, seeded))
    return found


def _references(
    contestants: list[Contestant],
    runs: list[Run],
    prompts: list[list[int]],
    params: SamplingParams,
) -> dict[int, list[int]]:
    """What ``ar`` gives: its first run, or one for this where it drew with other numbers."""
    baseline = next(each for each in contestants if each.method.policy == BASELINE)
    if must_equal(baseline.method, params):
        name = baseline.method.name
        return {run.prompt: run.tokens for run in runs if run.method == name and not run.repeat}
    engine = Engine(baseline.target, policy=BASELINE, verify="coupled")
    return {
        idx: engine.generate(prompt, _seeded(params, idx)).tokens
        for idx, prompt in enumerate(prompts)
    }
