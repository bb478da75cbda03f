"""H-RAD's file, its examples, its training, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine.featured import FeaturedTable
from safetensors.torch import save_file
from tiny_checkpoint import save_pair

from specbranch import HRad, SamplingParams, demo_pair, demo_predictor, layer_skip, progress
from specbranch.cli import EXIT_ERROR, main
from specbranch.hrad.collect import (
    Collection,
    Examples,
    _fingerprint,
    collect_request,
    concatenate,
    label_of,
)
from specbranch.hrad.evaluate import best_threshold, by_confidence, score
from specbranch.hrad.fit import Fit, class_weights, folded, new_mlp, raw_features
from specbranch.hrad.settings import TrainSettings
from specbranch.hrad.train import report_path, split, train_hrad
from specbranch.lanes import SerialLanes
from specbranch.pair import DEMO_DIR
from specbranch.predictor import HRadConfig, Keep
from specbranch.prompts import PIECE, read_prompts, stdlib
from specbranch.session import Session, Settings
from specbranch.testing.table_model import TableModel

K, D, V = 3, 8, 11
CONFIG = HRadConfig(K, D, V, 4, "big", "small")


def target_like(width: int = D, vocab: int = V, layers: int = 5) -> SimpleNamespace:
    """As much of a model as H-RAD wants to know."""
    generator = torch.Generator().manual_seed(width)
    embedding = torch.randn(vocab, width, generator=generator)
    config = SimpleNamespace(num_layers=layers)
    return SimpleNamespace(embedding=embedding, vocab_size=vocab, config=config)


def tensors(seed: int = 0, size: int = CONFIG.num_features) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return folded(new_mlp(size, 0.2), torch.randn(size), torch.rand(size) + 0.5)


# ---------------------------------------------------------------------------------------- the file
def test_a_file_keeps_everything(tmp_path: Path) -> None:
    target = target_like()
    saved = HRad(CONFIG, tensors(), target)
    saved.save(tmp_path / "hrad.safetensors")
    loaded = HRad.load(tmp_path / "hrad.safetensors", target)
    assert loaded.config == CONFIG
    features = torch.randn(50, CONFIG.num_features)
    torch.testing.assert_close(loaded.scores(features), saved.scores(features), rtol=0, atol=0)


def test_prediction_is_that_of_the_formula() -> None:
    target = target_like()
    weights = {key: value.float() for key, value in tensors().items()}
    predictor = HRad(CONFIG, weights, target)
    said = set()
    for seed in range(200):
        hidden = torch.randn(K, D, generator=torch.Generator().manual_seed(seed))
        x = torch.cat((hidden[0], hidden[1], hidden[2], target.embedding[seed % V]))
        for idx in range(3):
            x = weights[f"layers.{idx}.weight"] @ x + weights[f"layers.{idx}.bias"]
            x = x.clamp(min=0) if idx < 2 else x
        keep = predictor.predict(hidden, seed % V)
        assert keep is Keep(int(x.argmax()))
        said.add(keep)
    assert len(said) > 1


BAD_TARGETS = [
    (target_like(width=9), "width 8 with 11 tokens; this target has width 9 and 11 tokens"),
    (target_like(vocab=12), "this target has width 8 and 12 tokens"),
    (target_like(layers=2), "reads the last 3 layers; this target has 2"),
    (TableModel.random(V, seed=0), "TableModel without an embedding"),
]


@pytest.mark.parametrize(("target", "message"), BAD_TARGETS, ids=["width", "vocab", "layers", "no"])
def test_a_target_that_does_not_fit_is_refused(
    tmp_path: Path, target: object, message: str
) -> None:
    path = tmp_path / "hrad.safetensors"
    HRad(CONFIG, tensors(), target_like()).save(path)
    with pytest.raises(ValueError, match=message) as caught:
        HRad.load(path, target)
    assert str(path) in str(caught.value) or "TableModel" in message


def test_files_that_are_no_predictor(tmp_path: Path) -> None:
    path, target = tmp_path / "x.safetensors", target_like()
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"x\.safetensors is not a safetensors file"):
        HRad.load(path, target)
    save_file(tensors(), path)
    with pytest.raises(ValueError, match=r"x\.safetensors is not an H-RAD predictor"):
        HRad.load(path, target)
    save_file(tensors(), path, metadata={"specbranch-hrad-1": '{"gamma": "four"}'})
    with pytest.raises(ValueError, match="damaged metadata"):
        HRad.load(path, target)
    with pytest.raises(OSError):
        HRad.load(tmp_path / "missing", target)


def test_tensors_of_another_shape() -> None:
    wrong = tensors(size=CONFIG.num_features + 1)
    with pytest.raises(ValueError, match=r"layers\.0\.weight was \[256, 33\]; .* \[256, 32\]"):
        HRad(CONFIG, wrong, target_like())
    some = {key: value for key, value in tensors().items() if key != "layers.2.bias"}
    with pytest.raises(ValueError, match=r"layers\.2\.bias was missing"):
        HRad(CONFIG, some, target_like())
    with pytest.raises(ValueError, match=r"hidden was \[2, 8\]; it must be \[3, 8\]"):
        HRad(CONFIG, tensors(), target_like()).predict(torch.zeros(2, 8), 0)


# ---------------------------------------------------------------------------------------- examples
def table_pair(vocab: int = V) -> tuple[FeaturedTable, TableModel]:
    target = FeaturedTable.random(vocab, seed=1, scale=2.0)
    return target, TableModel(target.table + 0.8 * TableModel.random(vocab, seed=2).table)


def accepted_by_hand(draft: TableModel, tokens: list[int], first: int, gamma: int) -> int:
    """How many of gamma greedily drafted tokens from ``first`` on are the ones that came."""
    context = tokens[first - 2 : first]
    for count in range(gamma):
        drafted = int(draft.table[context[-2], context[-1]].argmax())
        if drafted != tokens[first + count]:
            return count
        context.append(drafted)
    return gamma


@pytest.mark.parametrize("gamma", [1, 3])
def test_examples_are_what_the_target_showed_and_what_the_draft_made_of_it(gamma: int) -> None:
    """Greedy, where both can be recomputed: position, token, label and confidence."""
    target, draft = table_pair()
    params, settings = SamplingParams(max_new_tokens=30), Settings(gamma=gamma)
    labels = set()
    for prompt in [[idx, idx + 1] for idx in range(V - 1)]:
        session = Session(target, draft, prompt, params, settings, SerialLanes(1), hidden_layers=2)
        found = concatenate(collect_request(session, frozenset(), prompt=7))
        tokens = session.tokens
        for idx, hidden in enumerate(found.hidden):
            before, last, position = hidden[0].int().tolist()
            token, first = int(found.next_token[idx]), position + 2
            assert tokens[position - 1 : first] == [before, last, token]
            count = accepted_by_hand(draft, tokens, first, gamma)
            assert found.label[idx] == label_of(count, gamma)
            confidence = draft.table[last, token].softmax(-1).max()
            torch.testing.assert_close(found.confidence[idx, 0], confidence)
        labels |= set(found.label.tolist())
        assert found.prompt.unique().tolist() == [7]
        # One example a round, but for the first and what is too short for a whole draft.
        assert len(found) == session.stats.rounds - 1
    assert labels == ({0, 1, 2} if gamma > 1 else {0, 2})


def test_nothing_is_learnt_behind_an_end_of_sequence() -> None:
    target, draft = table_pair()
    params = SamplingParams(max_new_tokens=150, temperature=1.0)
    settings, lanes = Settings(gamma=3), SerialLanes(1)
    session = Session(target, draft, [0, 1], params, settings, lanes, hidden_layers=1)
    collect_request(session, frozenset({5}))
    assert 5 in session.tokens and 5 not in session.tokens[:-4]


def test_labels() -> None:
    assert [label_of(count, 3) for count in range(4)] == [0, 1, 1, 2]
    assert [label_of(count, 1) for count in range(2)] == [0, 2]


SMALL = TrainSettings(
    gamma=2, layers=1, n=10, max_new_tokens=24, temperatures=(0.0, 1.0), epochs=4, batch=8
)
PROMPTS = [[idx, (3 * idx + 1) % V] for idx in range(10)]


def train(out: Path, settings: TrainSettings = SMALL, work: Path | None = None) -> bytes:
    train_hrad(*table_pair(), PROMPTS, out, settings, work=work, threads=1)
    return out.read_bytes()


def test_same_seed_same_file(tmp_path: Path) -> None:
    first = train(tmp_path / "a.safetensors")
    assert train(tmp_path / "b.safetensors") == first
    other = TrainSettings(**{**SMALL.to_dict(), "temperatures": (0.0, 1.0), "seed": 1})
    assert train(tmp_path / "c.safetensors", other) != first
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("steps", [1, 3])
def test_an_interrupted_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Once while collecting (two files of examples), once while training (four epochs)."""
    whole = train(tmp_path / "whole.safetensors")
    right, left = progress.Progress.step, [steps]

    def interrupted(self: progress.Progress, note: str = "") -> None:
        right(self, note)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "halves.safetensors")
    work = tmp_path / "halves.safetensors.work"
    assert len(list(work.glob("examples-*.safetensors"))) == min(steps, 2)
    assert (work / "fit.pt").exists() == (steps == 3)
    taken = []
    collect = Collection._collect
    monkeypatch.setattr(Collection, "_collect", lambda *args: (taken.append(1), collect(*args))[1])
    assert train(tmp_path / "halves.safetensors") == whole
    assert len(taken) == 2 - min(steps, 2)
    assert not work.exists()


def test_a_work_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    work = tmp_path / "work"
    train(tmp_path / "a.safetensors", work=work)
    assert work.exists()
    other = TrainSettings(**{**SMALL.to_dict(), "temperatures": (0.0, 1.0), "gamma": 3})
    with pytest.raises(ValueError, match=r"work was .*another run \(gamma 2, now 3\)"):
        train(tmp_path / "b.safetensors", other, work)
    names, out = ("target", "draft, int8 weights"), tmp_path / "b.safetensors"
    with pytest.raises(ValueError, match=r"another run \(names .*now .*int8 weights"):
        train_hrad(*table_pair(), PROMPTS, out, SMALL, names=names, work=work, threads=1)


def test_models_that_share_an_embedding_are_told_apart() -> None:
    target, _, _ = demo_pair()
    assert len({_fingerprint(layer_skip(target, layers)) for layers in (1, 2)}) == 2
    assert _fingerprint(target) == _fingerprint(demo_pair()[0])


def test_equal_prompts_count_once(tmp_path: Path) -> None:
    """Else one that is held out might be trained on, too."""
    out, twice = tmp_path / "twice.safetensors", [*PROMPTS, *PROMPTS[::-1]]
    train_hrad(*table_pair(), twice, out, SMALL, threads=1)
    assert out.read_bytes() == train(tmp_path / "once.safetensors")
    with pytest.raises(ValueError, match="prompts had 1 different ones"):
        train_hrad(*table_pair(), PROMPTS[:1] * 2, out, SMALL)


@pytest.mark.parametrize(
    ("out", "report"),
    [("a.safetensors", "a.json"), ("a.json", "a.json.json"), ("a-0.5", "a-0.5.json")],
)
def test_the_report_never_takes_the_place_of_a_predictor(out: str, report: str) -> None:
    assert report_path(Path("there", out)) == Path("there", report)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    target, draft = table_pair()
    out = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="TableModel without an embedding"):
        train_hrad(draft, draft, PROMPTS, out, SMALL)
    with pytest.raises(ValueError, match="draft has a vocabulary of 5 tokens"):
        train_hrad(target, TableModel.random(5, seed=0), PROMPTS, out, SMALL)
    with pytest.raises(ValueError, match="prompts: number 2 had 0 tokens"):
        train_hrad(target, draft, [[1, 2], []], out, SMALL)
    target.config = SimpleNamespace(num_layers=2)
    with pytest.raises(ValueError, match="layers was 3; the target has 2"):
        train_hrad(target, draft, PROMPTS, out, TrainSettings(layers=3))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"gamma": 0}, "gamma was 0"),
        ({"layers": 0}, "layers was 0"),
        ({"n": 1}, "n was 1"),
        ({"gamma": 8, "max_new_tokens": 17}, "max_new_tokens was 17"),
        ({"temperatures": ()}, "temperatures was empty"),
        ({"temperatures": (-1.0,)}, "temperatures was -1.0"),
        ({"held_out": 1.0}, "held_out was 1.0"),
        ({"epochs": 0}, "epochs was 0"),
        ({"batch": 0}, "batch was 0"),
        ({"seed": -1}, "seed was -1"),
    ],
    ids=str,
)
def test_bad_settings(bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**bad)


# ---------------------------------------------------------------------------------------- training
def made_up(count: int, seed: int) -> Examples:
    """Examples whose class is a function of the features, in dimensions of very unequal scale."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, K, D, generator=generator)
    label = (hidden[:, 0, 0] > 0.9).long() + (hidden[:, 1, 1] + hidden[:, 0, 0] > -0.3).long()
    scale = torch.logspace(-2, 3, D)
    shift = torch.linspace(-5, 5, D)
    hidden = ((hidden + shift) * scale).half()
    token = torch.randint(V, (count,), generator=generator)
    confidence = torch.rand(count, 4, generator=generator)
    return Examples(hidden, token, label, confidence, torch.arange(count) // 10)


@pytest.mark.parametrize("balanced", [True, False])
def test_it_learns_what_there_is_to_learn(tmp_path: Path, balanced: bool) -> None:
    train, held_out, target = made_up(2000, 0), made_up(600, 1), target_like()
    settings = TrainSettings(layers=K, epochs=6, learning_rate=1e-3, balanced=balanced)
    fitted = Fit(train, target.embedding, settings, tmp_path / "fit.pt").run()
    predictor = HRad(CONFIG, fitted, target)
    guesses = predictor.scores(raw_features(held_out, target.embedding)).argmax(-1)
    found = score(held_out.label, guesses)
    assert found.accuracy > 0.85 and found.balanced_accuracy > 0.8
    one = held_out.hidden[5].float(), int(held_out.next_token[5])
    assert predictor.predict(*one) == int(guesses[5])


def test_folding_the_scale_in_changes_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    size, mlp = 40, new_mlp(40, 0.2).eval()
    mean, spread = 100 * torch.randn(size), torch.logspace(-2, 2, size)
    raw = mean + spread * torch.randn(64, size)
    fitted = folded(mlp, mean, spread)
    x = raw.double()
    for idx in range(3):
        x = x @ fitted[f"layers.{idx}.weight"].double().T + fitted[f"layers.{idx}.bias"].double()
        x = x.clamp(min=0) if idx < 2 else x
    with torch.no_grad():
        wanted = mlp((raw - mean) / spread)
    torch.testing.assert_close(x.float(), wanted, atol=0.02, rtol=0.02)


def test_class_weights() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    assert class_weights(labels, balanced=False).tolist() == [1, 1, 1]
    weights = class_weights(labels, balanced=True)
    assert weights[0] * 3 == weights[2] and weights[1] == 0
    assert (weights[labels].mean()) == pytest.approx(1.0)


# -------------------------------------------------------------------------------------- evaluation
def test_scores() -> None:
    found = score(torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 2, 0]))
    assert found.confusion == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)


def test_the_confidence_rule() -> None:
    confidence = torch.tensor([[0.1, 0.9, 0.9], [0.9, 0.1, 0.9], [0.9, 0.9, 0.5]])
    assert by_confidence(confidence, 0.5).tolist() == [0, 1, 2]
    rows = torch.zeros(3, 1, 1)
    labels = torch.tensor([0, 1, 1])
    examples = Examples(rows, labels, labels, confidence, labels)
    assert 0.5 < best_threshold(examples, "accuracy") <= 0.9


def test_split_is_by_prompt() -> None:
    examples = made_up(1000, 3)
    train, held_out = split(examples, 100, TrainSettings())
    apart = [set(part.prompt.tolist()) for part in (train, held_out)]
    assert not apart[0] & apart[1] and len(apart[1]) == 20
    assert len(train) + len(held_out) == 1000
    only = examples.rows(examples.prompt == 0)
    with pytest.raises(ValueError, match="too few"):
        split(only, 2, TrainSettings())


# ----------------------------------------------------------------------------------- the prompts
def test_pieces_of_the_standard_library() -> None:
    texts = stdlib(20, seed=3)
    assert len(set(texts)) == 20 and texts == stdlib(20, seed=3) != stdlib(20, seed=4)
    assert all(PIECE / 4 < len(text) < 10 * PIECE for text in texts)
    with pytest.raises(ValueError, match="num_prompts was 100000"):
        stdlib(100_000)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    plain, objects = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("one\n\ntwo \nthree\n")
    assert read_prompts(str(plain), 2) == ["one", "two "]
    objects.write_text('{"prompt": "a\\nb"}\n{"prompt": "c"}\n')
    assert read_prompts(str(objects), 9) == ["a\nb", "c"]
    objects.write_text('{"prompt": "a"}\n{"text": "c"}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_prompts(str(objects), 9)
    plain.write_text("\n")
    with pytest.raises(ValueError, match="no prompts"):
        read_prompts(str(plain), 2)


# -------------------------------------------------------------------------------- what is shipped
def test_the_shipped_predictor_and_its_figures() -> None:
    path = DEMO_DIR / "hrad.safetensors"
    assert path.stat().st_size < 800_000
    predictor = demo_predictor(demo_pair()[0])
    report = json.loads(path.with_suffix(".json").read_text())
    assert predictor.gamma == report["settings"]["gamma"]
    assert predictor.hidden_layers == report["settings"]["layers"]
    card = (DEMO_DIR / "MODEL_CARD.md").read_text()
    for name, found in report["held_out"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {found['accuracy']:.3f} | {found['balanced_accuracy']:.3f} |" in row
    for counts in report["held_out"]["H-RAD"]["confusion"]:
        assert "| " + " | ".join(f"{count:,}" for count in counts) + " |" in card


# -------------------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny random pair, prompts, and a predictor that the command has trained for it."""
    folder = tmp_path_factory.mktemp("train-hrad")
    target, draft = save_pair(folder)
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"def f{idx}(x):\n" for idx in range(6)))
    pair = ["--target", str(target), "--draft", str(draft)]
    out = folder / "hrad.safetensors"
    argv = ["train-hrad", *pair, "--prompts", str(prompts), "-o", str(out), "--gamma", "2"]
    argv += ["--layers", "2", "--max-new-tokens", "24", "--epochs", "2", "--temperatures", "0", "1"]
    return SimpleNamespace(folder=folder, pair=pair, prompts=prompts, out=out, argv=argv)


@pytest.fixture(scope="module")
def trained(files: SimpleNamespace) -> SimpleNamespace:
    assert main(files.argv) == 0
    return files


def test_the_command_writes_predictor_and_report(trained, capsys) -> None:
    assert main(trained.argv) == 0
    out = capsys.readouterr().out
    for word in ("H-RAD", "commonest class", "confidence", "guessed"):
        assert word in out
    report = json.loads(trained.out.with_suffix(".json").read_text())
    assert report["settings"]["gamma"] == 2 and report["settings"]["n"] == 6
    assert report["pair"] == {"target": "target", "draft": "draft"}
    held_out = sum(report["examples"]["held_out"])
    for found in report["held_out"].values():
        assert np.sum(found["confusion"]) == held_out > 0
        assert 0 <= found["accuracy"] <= 1 and 0 <= found["balanced_accuracy"] <= 1
    assert not list(trained.folder.glob("*.work")) and not list(trained.folder.glob("*.part"))


def test_generate_takes_the_predictor(trained, capsys) -> None:
    argv = ["generate", "def f(x):", *trained.pair, "--max-new-tokens", "30"]
    assert main([*argv, "--hrad", str(trained.out)]) == 0
    found = capsys.readouterr()
    assert main([*argv, "--policy", "ar"]) == 0
    assert (found.out, found.err) == (capsys.readouterr().out, "")


def test_generate_refuses_a_predictor_of_another_pair(trained, capsys) -> None:
    assert main(["generate", "def f(x):", "--hrad", str(trained.out)]) == EXIT_ERROR
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--hrad" in err and str(trained.out) in err
    assert "width 64 with 256 tokens; this target has width 256 and 1024 tokens" in err


BAD = [
    (["generate", "a", "--hrad", "/no/such/file"], "--hrad was '/no/such/file'"),
    (["generate", "a", "--hrad", "demo", "--policy", "sps"], "--hrad was given with --policy sps"),
    (["train-hrad"], "--prompts"),
    (["train-hrad", "--prompts", "stdlib"], "--output"),
    (["train-hrad", "--prompts", "stdlib", "-o", "/"], "-o was '/', a directory"),
    (["train-hrad", "--prompts", "/no/file", "-o", "x"], "--prompts was '/no/file'"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--gamma", "0"], "--gamma was 0"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--layers", "0"], "--layers was 0"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--layers", "9"], "--layers was 9"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--n", "1"], "--n was 1"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--epochs", "0"], "--epochs was 0"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--batch", "0"], "--batch was 0"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--seed", "-1"], "--seed was -1"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--threads", "0"], "--threads was 0"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--temperatures", "-1"], "--temperatures"),
    (["train-hrad", "--prompts", "stdlib", "-o", "x", "--target", "."], "--draft"),
    (
        ["train-hrad", "--prompts", "stdlib", "-o", "x", "--target", "/no", "--draft", "."],
        "--target",
    ),
]


@pytest.mark.parametrize(("argv", "named"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(capsys, argv, named) -> None:
    assert main(argv) == EXIT_ERROR
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("specbranch: error: ")
    assert found.err.count("\n") == 1 and named in found.err


def test_progress_without_tqdm(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress.Progress("collect", 3, 1) as bar:
        bar.step("10 examples")
        bar.step("20 examples")
    err = capsys.readouterr().err
    assert err.splitlines() == ["collect 2/3 10 examples", "collect 3/3 20 examples"]
