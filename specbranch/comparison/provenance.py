"""Lines that say what was run, on what, and whether outputs were ``ar``'s."""

from __future__ import annotations

from typing import Any

from .methods import Method
from .result import Comparison

MOST_LINES = 20  # of differences; the others are in bench.json


def provenance(comparison: Comparison) -> list[str]:
    """All that a reader must know to judge the table, a line for each."""
    about = comparison.about
    lines = [
        _device(about),
        _prompts(comparison),
        *(f"{method.name}: {_settings(method)}" for method in comparison.methods),
        _versions(about),
    ]
    learning = [method.name for method in comparison.methods if method.policy == "auto"]
    if learning:
        lines.append(f"{', '.join(learning)}: goes on learning from request to request, warm-up on")
    if _is_busy(about):
        lines.append(
            f"THE MACHINE WAS BUSY before the run (load average {about['load_average']:.1f} on "
            f"{about['device']['cores_of_machine']} cores): times are not to be relied on"
        )
    if about.get("command"):
        lines.append(f"command: {about['command']}")
    if about.get("observed_apart"):
        names = ", ".join(about["observed_apart"])
        lines.append(
            f"rounds of {names} ran on the device, which does not tell their outcomes: pictures of "
            "accepted lengths and positions are of a second request, directed by the host"
        )
    drafting = [method.name for method in comparison.methods if method.needs_draft]
    if drafting and not any(run.spans for run in comparison.runs if run.method in drafting):
        lines.append(
            "no picture of the lanes: the host's clock would show launches on a CUDA device, not "
            "its work"
        )
    return [*lines, *about.get("notes", ()), *equality(comparison)]


def _is_busy(about: dict[str, Any]) -> bool:
    """Whether others took more than half of the machine's cores."""
    load = about.get("load_average")
    return load is not None and load > about["device"]["cores_of_machine"] / 2


def _device(about: dict[str, Any]) -> str:
    device = about["device"]
    parts = [f"device: {device['cpu']}, {device['threads']} of {device['cores']} cores"]
    for name, gpu in device.get("gpus", {}).items():
        parts.append(f"{name} {gpu}")
    if "driver" in device:
        parts.append(f"driver {device['driver']}, CUDA {device['cuda']}")
    for name, model in about["models"].items():
        which = f" {model['name']}" if "name" in model else ""
        parts.append(f"{name}{which} on {model['device']} in {model['dtype']}")
    return "; ".join(parts)


def _prompts(comparison: Comparison) -> str:
    params, lengths = comparison.params, comparison.prompt_tokens
    source = comparison.about.get("prompts")
    kind = "greedy" if params.temperature == 0 else f"temperature {params.temperature:g}"
    size = f"{min(lengths)}" if min(lengths) == max(lengths) else f"{min(lengths)} - {max(lengths)}"
    return (
        f"prompts: {len(lengths)}{f' of {source}' if source else ''}, {size} tokens; "
        f"at most {params.max_new_tokens} new tokens, end-of-sequence "
        f"{'ignored' if params.ignore_eos else 'honoured'}; {kind}, seed {params.seed} for the "
        f"first prompt, counting up; {comparison.repeat} run{'s' * (comparison.repeat > 1)} of "
        "each method on each prompt, in turns"
    )


def _settings(method: Method) -> str:
    found = ", ".join(f"{key} {value}" for key, value in method.settings.items())
    return found + (", H-RAD" if method.hrad else "")


def _versions(about: dict[str, Any]) -> str:
    commit = "no git checkout" if about["commit"] is None else f"commit {about['commit'][:10]}"
    changed = " with uncommitted changes" if about["uncommitted_changes"] else ""
    versions = (f"{name} {found}" for name, found in about["versions"].items() if found)
    return f"{about['date']}, {commit}{changed}; {', '.join(versions)}"


def equality(comparison: Comparison) -> list[str]:
    """What was claimed about outputs, and what was found."""
    others = [method for method in comparison.methods if method != comparison.baseline]
    bound = [method.name for method in others if comparison.must_equal(method)]
    free = [method.name for method in others if not comparison.must_equal(method)]
    lines = []
    if bound:
        lines.append(_verdict(comparison, bound))
    if free:
        lines.append(
            f"no equality of outputs is claimed or checked for {', '.join(free)}: with rejection "
            f"sampling at temperature {comparison.params.temperature:g} the distribution is ar's, "
            "the draws are not"
        )
    lines += [str(found) for found in comparison.differences[:MOST_LINES]]
    more = len(comparison.differences) - MOST_LINES
    return lines + ([f"and {more} more, see bench.json"] if more > 0 else [])


def _verdict(comparison: Comparison, names: list[str]) -> str:
    num_runs = sum(run.method in names for run in comparison.runs)
    kind = "greedy" if comparison.params.temperature == 0 else "coupled"
    wrong = len(comparison.wrong)
    ties = len(comparison.differences) - wrong
    if wrong:
        return f"{kind.upper()} OUTPUT DIFFERS from ar in {wrong} of {num_runs} requests"
    except_ties = f", but for {ties} that leave it at a tie of the target's own" if ties else ""
    return (
        f"{kind} output equals ar, token for token, in all {num_runs} requests "
        f"of {', '.join(names)}{except_ties}"
    )
