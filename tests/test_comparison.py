"""Methods side by side: what is counted, what is claimed, and what the pictures show."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from specbranch import SamplingParams, demo_pair
from specbranch.comparison import Comparison, Method, compare, measure, parse_method, plan_methods
from specbranch.comparison.equality import judge
from specbranch.comparison.measure import cut_rounds
from specbranch.comparison.methods import CONCERNS, WITHOUT_DRAFT
from specbranch.comparison.metrics import (
    acceptance_by_position,
    accepted_lengths,
    metrics,
    speed_ratios,
    spread,
    token_gaps,
)
from specbranch.comparison.record import commit
from specbranch.comparison.runs import Arrival, Run
from specbranch.engine import Event
from specbranch.policies import POLICIES
from specbranch.policies.ar import Autoregressive
from specbranch.session import Chain, Committed, Session
from specbranch.testing.oracles_sampling import gumbel_noise, logit_cutoff
from specbranch.testing.table_model import TableModel
from specbranch.timeline import Round, Span

PROMPTS = [[1, 2, 3], [4, 5]]
EVERY = tuple(CONCERNS)


def tables() -> tuple[TableModel, TableModel]:
    """A target, and a draft that is often right."""
    target = TableModel.random(vocab=8, seed=1, scale=2.0)
    noise = TableModel.random(vocab=8, seed=2)
    return target, TableModel(target.table + noise.table)


def compared(methods=EVERY, params=None, prompts=PROMPTS, **more) -> Comparison:
    params = params or SamplingParams(max_new_tokens=24)
    return compare(*tables(), prompts, methods, params, threads=1, **more)


@pytest.fixture(scope="module")
def greedy() -> Comparison:
    """Every policy, two prompts, two repeats."""
    return compared(repeat=2)


# ---------------------------------------------------------------------------------- methods
def test_policies_are_those_of_the_library():
    assert set(CONCERNS) == set(POLICIES)
    alone = {name for name, new in POLICIES.items() if not new(None).needs_draft}
    assert set(WITHOUT_DRAFT) == alone


@pytest.mark.parametrize(
    ("text", "policy", "settings", "hrad"),
    [
        ("ar", "ar", {}, False),
        ("sps:gamma=5", "sps", {"gamma": 5}, False),
        (
            "specbranch:gamma=4,draft-stage=serial, epsilon=.5",
            "specbranch",
            {"gamma": 4, "draft_stage": "serial", "epsilon": 0.5},
            False,
        ),
        ("specbranch+hrad:k_max=2", "specbranch", {"k_max": 2}, True),
        ("lookahead:window=7", "lookahead", {"window": 7}, False),
    ],
)
def test_a_method_is_named_as_typed(text, policy, settings, hrad):
    assert parse_method(text) == Method(text, policy, settings, hrad)


@pytest.mark.parametrize(
    ("wanted", "common", "said"),
    [
        (["magic"], {}, "'magic' is no method"),
        (["sps:"], {}, "SETTING=VALUE"),
        (["sps:gamma"], {}, "'gamma'"),
        (["sps:gamma=x"], {}, "in 'sps:gamma=x' gamma was 'x'; it must be an integer"),
        (["sps:gamma=0"], {}, "gamma was 0"),
        (["sps:gamma=65"], {}, "gamma was 65"),
        (["sps:k_max=2"], {}, "'k_max=2'"),
        (["sps:gamma=2,gamma=3"], {}, "gamma twice"),
        (["adaedl:epsilon=2"], {}, "epsilon was 2"),
        (["specbranch:draft_stage=both"], {}, "serial or overlap"),
        (["sps", "sps"], {}, "'sps' was given twice"),
        (["specbranch+hrad"], {}, "needs a predictor"),
        (["sps"], {"k_max": 2}, "k_max was 2; none"),
        (["sps"], {"gamma": 0}, "gamma was 0"),
    ],
)
def test_bad_methods_are_named(wanted, common, said):
    with pytest.raises((ValueError, TypeError)) as caught:
        plan_methods(wanted, common)
    assert said in str(caught.value)


def test_common_settings_go_where_they_concern_and_yield_to_own_ones():
    planned = plan_methods(["sps:gamma=5", "pearl", "ngram"], {"gamma": 2}, hrad=True)
    assert [method.name for method in planned] == [
        "ar", "sps:gamma=5", "pearl", "ngram", "specbranch+hrad",
    ]  # fmt: skip
    assert [method.settings.get("gamma") for method in planned] == [None, 5, 2, 2, 2]


# ---------------------------------------------------------------------------------- metrics
#: Three rounds: two chain tokens and the survivor of a branch; one of three and the recovered
#: token; none of an empty chain and a bonus token.
ROUNDS = [Round(3, 2, 2, 3, "branch"), Round(6, 3, 1, 2, "recovered"), Round(8, 0, 0, 1, "bonus")]
COUNTERS = {
    "seconds": 0.8, "prefill_seconds": 0.1, "target_seconds": 0.49, "target_forwards": 3,
    "draft_forwards": 9, "drafted": 8, "rolled_back": 2, "branch_points": 4, "branch_hits": 1,
    "accepted_chain": 3, "rejections": 1,
}  # fmt: skip


def made_up(method: str = "specbranch", prompt: int = 0, repeat: int = 0, seconds=0.8) -> Run:
    spans = [
        Span("target", "forward", idx, 0.1 + 0.2 * idx, 0.2 + 0.2 * idx, 3, 1) for idx in range(3)
    ]
    spans += [
        Span("draft", "branches", idx, 0.1 + 0.2 * idx, 0.15 + 0.2 * idx, 3, 2) for idx in range(3)
    ]
    spans += [Span("target", "verify", 2, 0.6, 0.62, 3, 1)]
    return Run(
        method=method,
        prompt=prompt,
        repeat=repeat,
        tokens=[7, 1, 2, 3, 4, 5],
        seconds=seconds,
        prefill_seconds=0.1,
        arrivals=[Arrival(0.2, 3), Arrival(0.3, 2), Arrival(0.4, 1)],
        origins={"chain": 3, "branch": 1, "recovered": 1, "bonus": 1},
        counters=dict(COUNTERS),
        rounds=list(ROUNDS),
        spans=spans,
    )


def test_metrics_by_hand():
    found = metrics([made_up(), made_up(seconds=1.2)])
    assert (found.num_runs, found.new_tokens) == (2, 12)
    assert found.tokens_per_second == pytest.approx(12 / 2.0)
    assert (found.prefill_seconds, found.time_to_first_token) == (0.1, 0.2)
    # Gaps of a run: .1 s for two tokens, .1 s for one; the first round's three are not in it.
    assert token_gaps(made_up()) == pytest.approx([0.05, 0.05, 0.1])
    assert found.token_p50 == pytest.approx(0.05)
    assert found.token_p99 == pytest.approx(0.1)
    assert pytest.approx(4 / 3) == found.M
    assert found.tokens_per_round == pytest.approx(6 / 3)
    assert found.tokens_without_bonus == pytest.approx(5 / 3)
    assert pytest.approx(0.25) == found.RB
    assert found.acceptance_rate == pytest.approx(0.75)
    assert found.branch_hit_rate == pytest.approx(0.25)
    assert found.bubble == pytest.approx(1 - 0.49 / 0.7)
    assert (found.target_forwards, found.draft_forwards) == (6, 18)


def test_what_a_method_has_not_is_none():
    zero = dict.fromkeys(COUNTERS, 0.0) | {"target_forwards": 1, "seconds": 1.0}
    run = replace(made_up(), counters=zero, arrivals=[Arrival(0.2, 6)])
    found = metrics([run])
    nothing = (found.token_p50, found.token_p99, found.RB, found.branch_hit_rate, found.bubble)
    assert nothing == (None,) * 5


def test_positions_and_lengths_by_hand():
    # Position 1 was judged twice, 2 twice (one rejected), 3 never.
    assert acceptance_by_position([made_up()]) == [(2, 2), (2, 1), (0, 0)]
    assert accepted_lengths([made_up()]) == [1, 1, 0, 1]


def test_speed_ratios_are_by_prompt_and_of_the_median_repeat():
    mine = [made_up(repeat=idx, seconds=val) for idx, val in enumerate((1.0, 0.5, 9.0))]
    mine += [made_up(prompt=1, seconds=3.0)]
    theirs = [made_up("ar", prompt=idx, seconds=2.0) for idx in (0, 1)]
    assert speed_ratios(mine, theirs) == pytest.approx({0: 2.0, 1: 2 / 3})
    assert spread([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 1.75, 3.25))
    assert spread([2.0]) == (2.0, 2.0, 2.0)


# ------------------------------------------------------------------------- what is counted
def test_rounds_are_cut_where_the_output_ends():
    rounds = [Round(3, 4, 4, 5, "bonus"), Round(8, 4, 3, 4, "recovered")]
    events = [Event([1] * 5, ["chain"] * 4 + ["bonus"], ""), Event([2, 0], ["chain"] * 2, "")]
    assert cut_rounds(rounds, events) == [rounds[0], Round(8, 2, 2, 2, "chain")]


def test_nothing_behind_an_end_of_sequence_token_is_counted():
    target, _ = tables()
    plain = compare(target, target, PROMPTS, ["ar"], SamplingParams(max_new_tokens=24), threads=1)
    target.eos_token_ids = (plain.runs[0].tokens[9],)
    wanted = plain.runs[0].tokens[: plain.runs[0].tokens.index(target.eos_token_ids[0]) + 1]
    # The draft is the target: chains are long and all right, and reach past the end.
    found = compare(
        target, target, PROMPTS[:1], EVERY, SamplingParams(max_new_tokens=24),
        settings={"gamma": 7}, threads=1,
    )  # fmt: skip
    assert found.differences == []
    cut = 0
    for run in found.runs:
        assert run.tokens == wanted
        counts = [sum(arrival.num_tokens for arrival in run.arrivals), sum(run.origins.values())]
        counts += [sum(outcome.num_committed for outcome in run.rounds)]
        assert counts == [len(wanted)] * 3, run.method
        cut += run.counters["committed"] > len(wanted)
    assert cut >= 3, "chains were to reach past the end"


def test_counters_agree_with_rounds(greedy):
    for run in greedy.runs:
        assert len(run.tokens) == 24 and len(run.rounds) == run.counters["rounds"]
        accepted = sum(outcome.num_accepted for outcome in run.rounds)
        assert accepted == run.counters["accepted_chain"]
        assert run.origins.get("chain", 0) == accepted
        assert 0 < run.prefill_seconds < run.time_to_first_token < run.seconds


def test_methods_take_turns_each_time_in_another_order():
    order: list[str] = []
    compared(["ar", "sps", "ngram"], step=order.append, repeat=12)
    turns = [tuple(order[idx : idx + 3]) for idx in range(0, len(order), 3)]
    assert all(sorted(turn) == ["ar", "ngram", "sps"] for turn in turns)
    assert len(turns) == 24 and len(set(turns)) == 6, "each order comes up"
    followers = {pair for turn in turns for pair in pairwise(turn)}
    assert len(followers) == 6, "nobody always follows the same one"


def test_settings_of_a_policy_reach_the_engine():
    found = compared(["sps:gamma=1", "sps:gamma=6", "specbranch:draft_stage=serial"])
    longest = {
        method.name: max(each.num_drafted for run in found.runs_of(method) for each in run.rounds)
        for method in found.methods
    }
    assert longest == {
        "ar": 0, "sps:gamma=1": 1, "sps:gamma=6": 6, "specbranch:draft_stage=serial": 3,
    }  # fmt: skip
    assert found.methods[-1].settings == {
        "gamma": 3, "k_max": 3, "epsilon": 0.1, "draft_stage": "serial", "verify": "rejection",
    }  # fmt: skip


def test_rounds_on_a_device_are_watched_in_a_second_request(monkeypatch):
    """The CPU can run such rounds too."""
    target, draft, _ = demo_pair()
    params = SamplingParams(max_new_tokens=12)
    run = functools.partial(compare, target, draft, PROMPTS[:1], ["sps"], params, threads=1)
    host = run()
    engine = measure.Engine

    def on_device(*models, **more):
        return engine(*models, **{"rounds": "device"} | more)

    monkeypatch.setattr(measure, "Engine", on_device)
    found = run()
    assert found.about["observed_apart"] == ["ar", "sps"] and host.about["observed_apart"] == []
    for ours, theirs in zip(found.runs, host.runs, strict=True):
        assert (ours.tokens, ours.rounds) == (theirs.tokens, theirs.rounds) and ours.rounds
        assert ours.spans == [] and theirs.spans
    assert "second request" in found.table() and "second request" not in host.table()


# ------------------------------------------------------------------------- what is claimed
def test_greedy_outputs_are_ars(greedy):
    assert greedy.differences == []
    assert "greedy output equals ar, token for token, in all 32 requests" in greedy.table()


@pytest.mark.parametrize("baseline", ["ar", "ar:verify=coupled"])
def test_coupled_outputs_are_ars_at_any_temperature(baseline):
    """Whatever numbers ``ar`` itself draws with."""
    params = SamplingParams(max_new_tokens=24, temperature=0.9, seed=3)
    found = compared([baseline, "sps:verify=coupled", "pearl:verify=coupled", "fanout"], params)
    assert found.differences == []
    text = found.table()
    assert "coupled output equals ar, token for token, in all 4 requests" in text
    assert "no equality of outputs is claimed or checked for fanout" in text


class Broken(Autoregressive):
    """Commits another token than the target's in its fourth round."""

    def __init__(self) -> None:
        self._rounds = 0

    def round(self, session: Session) -> Committed:
        chain = Chain()
        verdict = session.verify(session.target_forward(chain), chain)
        self._rounds += 1
        if self._rounds == 4:
            verdict = replace(verdict, next_token=(verdict.next_token + 1) % 8)
        return session.commit(chain, verdict)


def test_a_broken_policy_is_named(monkeypatch):
    monkeypatch.setitem(POLICIES, "ngram", lambda predictor: Broken())
    found = compared(["ar", "sps", "ngram"])
    assert [(each.method, each.prompt, each.position) for each in found.wrong] == [
        ("ngram", 0, 3), ("ngram", 1, 3),
    ]  # fmt: skip
    text = found.table()
    assert "GREEDY OUTPUT DIFFERS from ar in 2 of 4 requests" in text
    assert "NOT LOSSLESS: ngram, prompt 1, position 3: token" in text
    # With rejection sampling nothing is claimed; with coupled draws it is.
    params = SamplingParams(max_new_tokens=24, temperature=1.0)
    assert compared(["ngram"], params).differences == []
    assert len(compared(["ngram"], params, settings={"verify": "coupled"}).wrong) == 2


@pytest.mark.parametrize(("dtype", "wrong"), [(torch.bfloat16, 0), (torch.float32, 1)])
def test_ties_are_told_from_differences(monkeypatch, dtype, wrong):
    monkeypatch.setitem(POLICIES, "ngram", lambda predictor: Broken())
    target = TableModel(torch.zeros(8, 8, 8))
    target.dtype = dtype
    found = compare(target, None, [[1, 2]], ["ngram"], SamplingParams(max_new_tokens=6), threads=1)
    assert len(found.differences) == 1 and len(found.wrong) == wrong
    assert ("tie of the target's own: ngram, prompt 0, position 3" in found.table()) != bool(wrong)


def test_the_gap_of_a_coupled_draw_has_the_noise_in_it():
    target, _ = tables()
    params = SamplingParams(temperature=0.5, seed=11)
    scores = target.table[2, 3].double() / 0.5 + torch.from_numpy(gumbel_noise(11, 4, 8))
    best, second = scores.topk(2).indices.tolist()
    found = judge(target, [1, 2, 2], [3, second], [3, best], params)
    assert found["position"] == 1
    assert found["gap"] == pytest.approx(float(scores[best] - scores[second]))


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.5}])
def test_the_gap_of_a_coupled_draw_knows_the_cutoff(cut):
    """Four logits, of which three are kept and the noise would have liked the one that is cut."""
    seed = next(n for n in range(1000) if gumbel_noise(n, 4, 8).argmax() == 3)
    logits = torch.tensor([4.0, 3.9, 3.8, 2.0, -9.0, -9.0, -9.0, -9.0])
    target = TableModel(logits.expand(8, 8, 8).clone())
    target.dtype = torch.bfloat16
    scores = logits.double() / 2 + torch.from_numpy(gumbel_noise(seed, 4, 8))
    assert scores.argmax() == 3, "cut, and the best by far"
    best, second, worst = (int(idx) for idx in scores[:3].argsort(descending=True))
    params = SamplingParams(temperature=2.0, seed=seed, **cut)

    def gap(token: int) -> float:
        return judge(target, [1, 2, 2], [3, token], [3, best], params)["gap"]

    assert gap(second) == pytest.approx(float(scores[best] - scores[second]))
    assert gap(worst) == pytest.approx(float(scores[best] - scores[worst]))
    cutoff = logit_cutoff(logits, 2.0, **{"top_k": 0, "top_p": 1.0, "min_p": 0.0} | cut)
    assert gap(3) == pytest.approx((cutoff - 2.0) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"draft": None}, "draft was None; sps need"),
        ({"prompts": []}, "prompts was empty"),
        ({"prompts": ["text"]}, "prompts[0] was text"),
        ({"prompts": [[1], []]}, "prompts[1] was empty"),
        ({"repeat": 0}, "repeat was 0"),
        ({"prompts": [[1], [2] * 4090]}, "max_new_tokens was 24 and prompt 1 has 4090 tokens"),
        ({"threads": 0}, "threads was 0"),
    ],
)
def test_bad_arguments_are_named(given, said):
    target, draft = tables()
    rest = {"target": target, "draft": draft, "prompts": PROMPTS, "methods": ["sps"]}
    with pytest.raises(ValueError) as caught:
        compare(**rest | {"params": SamplingParams(max_new_tokens=24)} | given)
    assert said in str(caught.value)


# ------------------------------------------------------------------------- what is shown
def test_a_result_comes_back_from_its_dictionary(greedy):
    """Times are rounded there, once."""
    found = json.loads(json.dumps(greedy.to_dict()))
    again = Comparison.from_dict(found)
    assert Comparison.from_dict(again.to_dict()).to_dict() == again.to_dict()
    assert again.to_dict()["runs"] == found["runs"]
    assert (again.methods, again.params) == (greedy.methods, greedy.params)
    for ours, theirs in zip(again.runs, greedy.runs, strict=True):
        assert (ours.tokens, ours.rounds) == (theirs.tokens, theirs.rounds)
        assert ours.seconds == pytest.approx(theirs.seconds, abs=1e-6)


def test_commit_of_a_place_that_is_no_checkout(tmp_path):
    assert commit(tmp_path) == {"commit": None, "uncommitted_changes": None}


@pytest.mark.parametrize(("load", "is_busy"), [(2.1, True), (1.9, False), (None, False)])
def test_a_busy_machine_is_said(greedy, load, is_busy):
    device = greedy.about["device"] | {"cores": 1, "cores_of_machine": 4}
    found = replace(greedy, about=greedy.about | {"load_average": load, "device": device})
    assert ("THE MACHINE WAS BUSY" in found.table()) == is_busy


def test_table_has_a_row_for_each_method(greedy):
    lines = greedy.table().splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(EVERY)]] == list(EVERY)
    assert (
        lines[2].split()[2] == "1" and len({len(line) for line in lines[2 : 2 + len(EVERY)]}) == 1
    )


def bars(axes, label: str) -> list[tuple[float, float]]:
    """Left end and width of the bars with a label, in order."""
    found = [box[0] for box in axes.containers if box.get_label() == label]
    return sorted((float(bar.get_x()), float(bar.get_width())) for bar in found)


def test_timeline_shows_both_lanes():
    pytest.importorskip("matplotlib")
    from specbranch.comparison.timeline_plot import timeline_figure

    runs = [made_up("ar"), made_up("specbranch"), made_up("sps")]
    methods = [Method(name, name) for name in ("ar", "specbranch", "sps")]
    comparison = Comparison(methods, [3], SamplingParams(), 1, runs, [])
    first, second = timeline_figure(comparison).axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_title("left") == "specbranch: 6 tokens in 520.0 ms"
    # Milliseconds from the first round's start, 0.1 s.
    assert bars(first, "target forward") == [
        (pytest.approx(200.0 * idx, abs=1e-6), pytest.approx(100.0)) for idx in range(3)
    ]
    assert bars(first, "draft branches") == [
        (pytest.approx(200.0 * idx, abs=1e-6), pytest.approx(50.0)) for idx in range(3)
    ]
    assert bars(first, "target verify") == [(pytest.approx(500.0), pytest.approx(20.0))]
    lanes = {bar[0].get_y() + bar[0].get_height() / 2 for bar in first.containers}
    assert lanes == {0.0, 1.0}
    assert [text.get_text() for text in first.texts] == ["2/2 +b", "1/3", "0/0"]


def test_window_is_of_median_length_and_not_the_first_rounds():
    from specbranch.comparison.timeline_plot import window

    lengths = [9.0, 9.0, 1.0, 5.0, 2.0, 3.0, 4.0]
    starts = [sum(lengths[:idx]) for idx in range(len(lengths))]
    spans = [
        Span("target", "forward", idx, start, start + lengths[idx], 1, 1)
        for idx, start in enumerate(starts)
    ]
    run = replace(made_up(), rounds=ROUNDS[:1] * 7, spans=spans)
    found = window(Method("sps", "sps"), run, count=2)
    # Pairs from the third round on: 6, 7, 5, 7; the lower median is 6.
    assert found is not None and found.seconds == 6.0 and found.starts == [0.0, 1.0]
    assert [(span.round, span.start) for span in found.spans] == [(2, 0.0), (3, 1.0)]


def test_pictures_hold_the_figures(greedy):
    pytest.importorskip("matplotlib")
    from specbranch.comparison import plots

    colour = plots.colours(greedy.methods)
    assert len(set(colour.values())) == len(EVERY)
    axes = plots.speedup_figure(greedy).axes[0]
    widths = {
        label.get_text(): container[0].get_width()
        for label, container in zip(axes.get_yticklabels(), bar_containers(axes), strict=True)
    }
    for method in greedy.methods:
        wanted = spread(list(greedy.speedups(method).values())).median
        assert widths[method.name] == pytest.approx(wanted)
    lines = plots.acceptance_figure(greedy).axes[0].lines
    by_name = {line.get_label(): line for line in lines}
    counts = acceptance_by_position(greedy.runs_of(greedy.methods[1]))
    assert list(by_name["sps"].get_ydata()) == [hits / num for num, hits in counts]
    assert by_name["sps"].get_color() == colour["sps"]
    assert "ar" not in by_name
    titles = [axes.get_title() for axes in plots.length_figure(greedy).axes]
    assert f"sps: {greedy.metrics(greedy.methods[1]).M:.2f}" in titles


def bar_containers(axes) -> list:
    return [found for found in axes.containers if type(found).__name__ == "BarContainer"]


def test_a_long_name_has_its_settings_on_another_line():
    pytest.importorskip("matplotlib")
    from specbranch.comparison.plots import label_of

    names = ["sps:gamma=2", "specbranch:gamma=4,draft_stage=serial"]
    assert [label_of(parse_method(name)) for name in names] == [
        "sps:gamma=2", "specbranch:\ngamma=4,draft_stage=serial",
    ]  # fmt: skip


def test_what_was_not_drafted_has_no_picture():
    pytest.importorskip("matplotlib")
    from specbranch.comparison import plots

    alone = compared(["ar"])
    figures = [plots.rollback_figure, plots.acceptance_figure, plots.length_figure]
    assert [make(alone) for make in [*figures, plots.timeline_figure]] == [None] * 4
    assert plots.speedup_figure(alone) is not None


def test_further_methods_of_a_policy_are_paler():
    pytest.importorskip("matplotlib")
    from specbranch.comparison.plots import COLOURS, colours

    found = colours(plan_methods(["sps", "sps:gamma=2", "sps:gamma=3"]))
    shades = [int(found[name][1:3], 16) for name in ("sps", "sps:gamma=2", "sps:gamma=3")]
    assert found["sps"] == COLOURS["sps"] and shades == sorted(set(shades))
