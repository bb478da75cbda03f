"""Counters of one request and the metrics made from them (names as in the SpecBranch paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass
class Stats:
    """What happened while one request was decoded.

    Every main-line drafted token ends in exactly one of ``accepted``, ``rolled_back`` and
    ``pruned``, or is still in the chain when the request ends. Siblings (branches that were not
    the main line) are counted apart, in ``sibling_tokens``.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0  # wall time of the whole request
    prefill_seconds: float = 0.0
    time_to_first_token: float = 0.0  # seconds
    target_seconds: float = 0.0  # time in which the target lane worked, after the prompt
    host_seconds: float = 0.0  # what rounds on a device cost the host, waiting left out
    rounds: int = 0
    target_forwards: int = 0
    draft_forwards: int = 0
    committed: int = 0  # before the cut at max_new_tokens, EOS or a stop string
    drafted: int = 0  # main line: chain and surviving (or most likely) branch
    accepted: int = 0  # chain tokens accepted and branch candidates hit
    rejections: int = 0  # rounds that ended in a rejected chain token
    accepted_chain: int = 0
    rolled_back: int = 0
    pruned: int = 0
    sibling_tokens: int = 0
    branch_points: int = 0
    branch_hits: int = 0

    def count_round(self, num_drafted: int, num_accepted: int, num_committed: int) -> None:
        """A round has judged a chain and committed its tokens."""
        self.rounds += 1
        self.accepted += num_accepted
        self.accepted_chain += num_accepted
        self.rejections += num_accepted < num_drafted
        self.rolled_back += num_drafted - num_accepted
        self.committed += num_committed

    def count_branches(
        self, num_branches: int, main_line: int, *, reached: bool, hit: bool
    ) -> None:
        """A branch stage is over: each branch had ``main_line`` tokens, its head included.

        ``reached``: the branch point was; ``hit``: the token there was a head, whose branch is the
        main line.
        """
        self.drafted += main_line
        self.sibling_tokens += max(num_branches - 1, 0) * main_line
        self.branch_points += reached
        self.branch_hits += hit
        self.accepted += hit
        self.rolled_back += 0 if hit else main_line

    @property
    def decode_seconds(self) -> float:
        """Wall seconds after the prompt was processed."""
        return max(0.0, self.seconds - self.prefill_seconds)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the time after the prompt was processed."""
        return _ratio(self.new_tokens, self.decode_seconds)

    @property
    def mean_accepted_length(self) -> float:
        """M: drafted tokens accepted per target forward."""
        return _ratio(self.accepted, self.target_forwards)

    @property
    def tokens_per_round(self) -> float:
        """Committed tokens per target forward."""
        return _ratio(self.committed, self.target_forwards)

    @property
    def rollback_rate(self) -> float:
        """RB: main-line drafted tokens thrown away by a rejection or a miss, over all of them."""
        return _ratio(self.rolled_back, self.drafted)

    @property
    def acceptance_rate(self) -> float:
        """Accepted over judged chain tokens (those after a rejection were never judged)."""
        return _ratio(self.accepted_chain, self.accepted_chain + self.rejections)

    @property
    def branch_hit_rate(self) -> float:
        """Rounds whose branch-point token was a candidate, over rounds that reached it."""
        return _ratio(self.branch_hits, self.branch_points)

    @property
    def bubble(self) -> float:
        """Share of the decoding time in which the target lane sat idle."""
        return max(0.0, 1.0 - _ratio(self.target_seconds, self.decode_seconds))

    def to_dict(self) -> dict[str, Any]:
        """All counters and metrics as plain numbers."""
        counters = dict(self.__dict__)
        return counters | {
            "tokens_per_second": self.tokens_per_second,
            "M": self.mean_accepted_length,
            "tokens_per_round": self.tokens_per_round,
            "RB": self.rollback_rate,
            "acceptance_rate": self.acceptance_rate,
            "branch_hit_rate": self.branch_hit_rate,
            "bubble": self.bubble,
        }

    def summary(self) -> str:
        """A few lines for a person."""
        return (
            f"{self.new_tokens} tokens in {self.seconds:.3f} s, "
            f"{self.tokens_per_second:.1f} tokens/s after a prompt of {self.prompt_tokens} "
            f"(first token after {1e3 * self.time_to_first_token:.0f} ms)\n"
            f"{self.target_forwards} target and {self.draft_forwards} draft forwards, "
            f"{self.tokens_per_round:.2f} tokens per target forward, "
            f"M {self.mean_accepted_length:.2f}, acceptance {self.acceptance_rate:.2f}\n"
            f"rollback rate {self.rollback_rate:.2f}, branch hit rate {self.branch_hit_rate:.2f}, "
            f"pruned {self.pruned}, sibling tokens {self.sibling_tokens}, bubble {self.bubble:.2f}"
        )
