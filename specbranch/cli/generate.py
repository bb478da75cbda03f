"""``specbranch generate``: stream the continuation of a prompt."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from specbranch.cli import batch
from specbranch.cli.options import DEMO, Options, UsageError, name_flags
from specbranch.cli.show import Colourer, legend

if TYPE_CHECKING:
    from pathlib import Path

    from specbranch.engine import Engine, GenerationResult, Prompt
    from specbranch.models import CausalLM
    from specbranch.predictor import HRad
    from specbranch.tokenizer import Tokenizer

INTERRUPTED = 130


def generate(options: Options) -> int:
    """Run the command; the return value is the exit code."""
    if options.prompts:
        prompts = batch.read(options)
        return 0 if batch.run(_engine_for(options), prompts, options) else INTERRUPTED
    prompt = as_prompt(read_prompt(options), options)
    engine = _engine_for(options)
    code = 0
    try:
        if options.json:
            _run_quietly(engine, prompt, options)
        else:
            _stream(engine, prompt, options)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (ValueError, TypeError) as error:
        raise UsageError(name_flags(str(error))) from error
    _report(engine, options)
    return code


def _engine_for(options: Options) -> Engine:
    """The engine, which must be able to write messages where that is asked of it."""
    engine = build_engine(options)
    if options.chat and engine.tokenizer is not None and engine.tokenizer.chat_template is None:
        raise UsageError(
            "--chat was given, but the tokenizer has no chat template to write messages with"
        )
    return engine


def read_prompt(options: Options) -> str:
    """The prompt's text, from the command line, a file or stdin."""
    name = "PROMPT" if options.file is None else f"--file {str(options.file)!r}"
    try:
        if options.file is not None:
            return options.file.read_bytes().decode("utf-8")
        if options.prompt == "-":
            name = "PROMPT - (stdin)"
            return sys.stdin.buffer.read().decode("utf-8")
        prompt = options.prompt or ""
        prompt.encode("utf-8")  # arguments that are not UTF-8 arrive as lone surrogates
        return prompt
    except UnicodeError as error:
        raise UsageError(f"{name} was not valid UTF-8 text: {error}") from error
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}") from error


def as_prompt(text: str, options: Options) -> Prompt:
    """The text itself, or with ``--chat`` the messages it is part of."""
    if not options.chat:
        return text
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return [*system, {"role": "user", "content": text}]


def build_engine(options: Options) -> Engine:
    """Load the models that the options name and put the engine over them."""
    from specbranch import Engine

    target, draft, tokenizer = load_models(options)
    engine = dict(options.engine)
    if options.prompts:
        engine["rounds"] = "host"  # those on the device are for one request at a time
    try:
        if options.hrad is not None:
            engine["predictor"] = predictor = load_predictor(options.hrad, target)
            engine.setdefault("gamma", predictor.gamma)
        return Engine(target, draft, tokenizer=tokenizer, **engine)
    except (ValueError, TypeError) as error:
        raise UsageError(name_flags(str(error))) from error


def load_models(options: Options) -> tuple[CausalLM, CausalLM | None, Tokenizer]:
    """Target, draft and tokenizer that the options name."""
    try:
        _check_places(options)
        return _load(options)
    except (ValueError, TypeError) as error:
        raise UsageError(name_flags(str(error))) from error


def _load(options: Options) -> tuple[CausalLM, CausalLM | None, Tokenizer]:
    from specbranch import demo_pair, load_model, load_tokenizer

    dtype, device = options.dtype, options.device
    if options.target is None:
        pair = demo_pair(
            dtype=dtype,
            device=device,
            draft_device=options.draft_device,
            target_weights=options.target_weights,
            draft_weights=options.weights_of_draft,
        )
        return pair[0], _layer_skip(pair[0], options) or pair[1], pair[2]
    target = load_model(options.target, dtype=dtype, device=device, weights=options.target_weights)
    tokenizer = load_tokenizer(options.target)
    draft: CausalLM | None = _layer_skip(target, options)
    if options.draft is not None:
        draft = load_model(
            options.draft,
            dtype=dtype,
            device=options.draft_device or device,
            weights=options.weights_of_draft,
        )
        draft = _for_target(draft, target, options.draft, tokenizer)
    return target, draft, tokenizer


def _for_target(draft: CausalLM, target: CausalLM, folder: Path, tokenizer: Tokenizer) -> CausalLM:
    """The draft with the target's vocabulary; refused where its tokens are others."""
    from specbranch import load_tokenizer
    from specbranch.models import match_vocabulary
    from specbranch.models.gguf import find_gguf
    from specbranch.tokenizer import check_same_tokenizer

    if find_gguf(folder) is not None or (folder / "tokenizer.json").is_file():
        check_same_tokenizer(tokenizer, load_tokenizer(folder))
    elif draft.vocab_size != target.vocab_size:
        raise ValueError(
            f"draft has {draft.vocab_size} tokens and no tokenizer.json in {folder}; with one that "
            f"is the target's it could have another number than the target's {target.vocab_size}"
        )
    return match_vocabulary(draft, target.vocab_size)


def _layer_skip(target: CausalLM, options: Options) -> CausalLM | None:
    """The draft of ``--layer-skip``, None without the flag."""
    from specbranch import layer_skip
    from specbranch.models import LlamaModel

    if options.layer_skip is None:
        return None
    if not isinstance(target, LlamaModel):
        raise UsageError(
            "--layer-skip needs a target that runs natively; this one runs by way of transformers"
        )
    try:
        return layer_skip(target, options.layer_skip)
    except ValueError as error:
        raise UsageError(str(error).replace("num_layers", "--layer-skip", 1)) from error


def load_predictor(name: str, target: CausalLM) -> HRad:
    """The H-RAD predictor in a file, or the demo pair's."""
    from specbranch import HRad, demo_predictor

    try:
        return demo_predictor(target) if name == DEMO else HRad.load(name, target)
    except ValueError as error:
        raise UsageError(f"--hrad: {error}") from error


def _check_places(options: Options) -> None:
    """Before models are loaded, which takes long."""
    from specbranch.devices import resolve_device
    from specbranch.models.loader import check_weights

    device = drafts = resolve_device(options.device)
    if options.draft_device is not None:
        drafts = resolve_device(options.draft_device, "draft_device")
    check_weights(options.target_weights, device, name="target_weights")
    check_weights(options.weights_of_draft, drafts, name="draft_weights")


def _stream(engine: Engine, prompt: Prompt, options: Options) -> None:
    """Write text as it is committed, flushed per piece."""
    colourer = None
    if options.show and engine.tokenizer is not None:
        colourer = Colourer(engine.tokenizer.stream_decoder())
        sys.stderr.write(legend() + "\n")
        sys.stderr.flush()
    ends_line = False
    events = engine.events(prompt, options.sampling)
    try:
        for event in events:
            text = event.text
            ends_line = text.endswith("\n") if text else ends_line
            if colourer is not None:
                text = colourer.colour(event.tokens, event.origins, text)
            sys.stdout.write(text)
            sys.stdout.flush()
    finally:
        events.close()  # an interrupted request ends here, its counters stay readable
        if sys.stdout.isatty() and not ends_line:
            sys.stdout.write("\n")


def _run_quietly(engine: Engine, prompt: Prompt, options: Options) -> None:
    events = engine.events(prompt, options.sampling)
    try:
        for _ in events:
            pass
    finally:
        events.close()


def _report(engine: Engine, options: Options) -> None:
    result = engine.last_result
    if result is None:  # interrupted before the first round
        return
    if options.json:
        sys.stdout.write(json.dumps(as_object(result), ensure_ascii=False) + "\n")
    if options.stats:
        sys.stderr.write(result.stats.summary().rstrip("\n") + "\n")


def as_object(result: GenerationResult) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "text": result.text,
        "tokens": [int(token) for token in result.tokens],
        "origins": list(result.origins),
        "finish_reason": result.finish_reason,
        "stats": result.stats.to_dict(),
    }
