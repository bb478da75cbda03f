"""Examples for H-RAD: what the target showed before a draft, and how much of that draft held.

Rounds are those of speculative sampling, in the session's own verbs: draft gamma tokens, verify,
commit. What a round has at hand when it ends (hidden states at the newest verified position and the
token committed behind it) is the feature; the number of tokens accepted in the *next* round, whose
draft starts right behind that token, is the label. A surviving branch of ``policies/specbranch.py``
is in the same place: its tokens were drafted right behind the committed ``next_token``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..files import write_safely, write_text_safely
from ..lanes import Lanes
from ..models.protocol import CausalLM
from ..predictor import Keep, num_layers_of
from ..progress import Progress
from ..sampling_params import SamplingParams
from ..session import Chain, Session, Settings
from .settings import TrainSettings

REQUESTS_PER_FILE = 16
HALF_MAX = 65504.0  # the largest float16


@dataclass
class Examples:
    """Rows of examples; float16 halves what a large target's features take."""

    hidden: torch.Tensor  # [n, K, d] float16
    next_token: torch.Tensor  # [n] int64
    label: torch.Tensor  # [n] int64, a Keep
    confidence: torch.Tensor  # [n, gamma] float32, the draft's max probability at each position
    prompt: torch.Tensor  # [n] int64, which prompt

    def __len__(self) -> int:
        return len(self.label)

    def rows(self, chosen: torch.Tensor) -> Examples:
        """Those that ``chosen``, a mask or indices, names."""
        return Examples(*(getattr(self, field.name)[chosen] for field in fields(self)))


def concatenate(parts: Sequence[Examples]) -> Examples:
    """All rows of all parts, in order."""
    return Examples(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Examples))
    )


def label_of(num_accepted: int, gamma: int) -> Keep:
    """0 all rejected, 1 in between, 2 all accepted."""
    if num_accepted == 0:
        return Keep.NOTHING
    return Keep.ALL if num_accepted == gamma else Keep.CONFIDENT


def confidence_of(chain: Chain, temperature: float) -> torch.Tensor:
    """The draft's max probability at each position, as the engine computes it: ``[m]``."""
    assert chain.logits is not None, "the chain was drafted, not made up"
    return torch.softmax(chain.logits.float() / (temperature or 1.0), -1).amax(-1).cpu()


def collect_request(session: Session, eos: frozenset[int], prompt: int = 0) -> list[Examples]:
    """Decode one request to its end; an example of each round but the first."""
    gamma, found = session.settings.gamma, []
    session.prefill()
    asked: tuple[torch.Tensor, int] | None = None
    while session.chain_room() >= gamma:
        chain = session.draft_chain()
        verdict = session.verify(session.target_forward(chain), chain)
        if asked is not None:
            label = label_of(verdict.num_accepted, gamma)
            confidence = confidence_of(chain, session.params.temperature)
            found.append(_example(*asked, label, confidence, prompt))
        committed = session.commit(chain, verdict)
        if not eos.isdisjoint(committed.tokens):
            break
        asked = session.target_features(), verdict.next_token
    return found


def _example(
    hidden: torch.Tensor, next_token: int, label: Keep, confidence: torch.Tensor, prompt: int
) -> Examples:
    half = hidden.float().clamp(-HALF_MAX, HALF_MAX).to("cpu", torch.float16)
    numbers = (torch.tensor([value]) for value in (next_token, int(label), prompt))
    token, kind, origin = numbers
    return Examples(half.unsqueeze(0), token, kind, confidence.unsqueeze(0), origin)


# ------------------------------------------------------------------------------ many, resumable
class Collection:
    """All requests of a training run; finished ones lie in ``work`` and are not run again.

    Args:
        target, draft: the pair.
        prompts: token ids.
        settings: what to generate.
        work: folder for what is finished; made if need be.
        lanes: where the models run.
        names: of target and draft; with others an unfinished run is another one.

    Raises:
        ValueError: there are fewer than two prompts, one does not fit, or ``work`` holds examples
            of another run.
    """

    def __init__(
        self,
        target: CausalLM,
        draft: CausalLM,
        prompts: Sequence[Sequence[int]],
        settings: TrainSettings,
        work: Path,
        lanes: Lanes,
        names: tuple[str, str] = ("", ""),
    ) -> None:
        self.names = names
        self.target, self.draft, self.prompts = target, draft, prompts
        self.settings, self.work, self.lanes = settings, work, lanes
        self._check_prompts()
        self.requests = [
            (idx, heat) for idx in range(len(prompts)) for heat in settings.temperatures
        ]
        work.mkdir(parents=True, exist_ok=True)
        self._claim_folder()

    def run(self) -> Examples:
        """What is there and what is missing, together."""
        firsts = range(0, len(self.requests), REQUESTS_PER_FILE)
        done = sum(self._file(first).exists() for first in firsts)
        count = 0
        with Progress("collect", len(firsts), done) as bar:
            for first in firsts:
                if not self._file(first).exists():
                    part = self._collect(self.requests[first : first + REQUESTS_PER_FILE], first)
                    count += len(part)
                    write_safely(self._file(first), partial(_save, part))
                    bar.step(f"{count} examples")
        return concatenate([_load(self._file(first)) for first in firsts])

    def _collect(self, requests: list[tuple[int, float]], first: int) -> Examples:
        found: list[Examples] = []
        for offset, (idx, heat) in enumerate(requests):
            seed = int(np.random.default_rng([self.settings.seed, first + offset]).integers(2**31))
            params = SamplingParams(self.settings.max_new_tokens, heat, seed=seed)
            session = Session(
                self.target,
                self.draft,
                self.prompts[idx],
                params,
                Settings(gamma=self.settings.gamma),
                self.lanes,
                hidden_layers=self.settings.layers,
            )
            found += collect_request(session, frozenset(self.target.eos_token_ids), idx)
        return concatenate(found) if found else self._nothing()

    def _nothing(self) -> Examples:
        """No rows, for requests that all ended at once."""
        width = self.target.embedding.shape[1]  # type: ignore[attr-defined]
        none = torch.empty(0, dtype=torch.int64)
        hidden = torch.empty(0, self.settings.layers, width, dtype=torch.float16)
        return Examples(hidden, none, none, torch.empty(0, self.settings.gamma), none)

    def _check_prompts(self) -> None:
        if len(self.prompts) < 2:
            raise ValueError(
                f"prompts had {len(self.prompts)} different ones; there must be at least 2, one to "
                "train on and one to hold out"
            )
        limit = min(self.target.max_seq_len, self.draft.max_seq_len) - self.settings.max_new_tokens
        for idx, prompt in enumerate(self.prompts):
            if not 1 <= len(prompt) <= limit:
                raise ValueError(
                    f"prompts: number {idx + 1} had {len(prompt)} tokens; with "
                    f"{self.settings.max_new_tokens} new tokens it must have 1 .. {limit}"
                )

    def _file(self, first: int) -> Path:
        return self.work / f"examples-{first:06d}.safetensors"

    def _claim_folder(self) -> None:
        """Examples of other settings, prompts or models must not be mixed with ours."""
        path, ours = self.work / "run.json", self._identity()
        if not path.exists():
            write_text_safely(path, json.dumps(ours, indent=1) + "\n")
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"{key} {theirs.get(key)!r}, now {value!r}"
            for key, value in ours.items()
            if theirs.get(key) != value
        ]
        if differing:
            raise ValueError(
                f"work was {str(self.work)!r}; it holds another run ({'; '.join(differing)}): "
                "finish that one, remove the folder, or name another"
            )

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps([list(prompt) for prompt in self.prompts]).encode())
        models = {"target": self.target, "draft": self.draft}
        marks = {name: _fingerprint(model) for name, model in models.items()}
        named = {"names": list(self.names), "prompts": digest.hexdigest()[:16]}
        return self.settings.data() | named | marks


def _fingerprint(model: CausalLM) -> str:
    """Tells models apart that share a name: a hash of some weights, of sizes and of the kind."""
    kind = type(model).__name__, num_layers_of(model), str(getattr(model, "dtype", ""))
    found = hashlib.sha256(repr(kind).encode())
    for name in ("embedding", "final_norm"):
        weight = getattr(model, name, None)
        if isinstance(weight, torch.Tensor):
            found.update(weight[:64].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _save(examples: Examples, path: Path) -> None:
    names = [field.name for field in fields(examples)]
    save_file({name: getattr(examples, name).contiguous() for name in names}, path)


def _load(path: Path) -> Examples:
    return Examples(**load_file(path))
