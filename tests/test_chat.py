"""Chat templates give the text and tokens that transformers gives."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tiny_checkpoint import byte_tokenizer, save_checkpoint
from tokenizers.processors import TemplateProcessing

from specbranch import Engine, SamplingParams, load_model
from specbranch.chat import ChatTemplate
from specbranch.cli import EXIT_ERROR, main
from specbranch.tokenizer import Tokenizer, load_tokenizer

BOS, EOS, START, END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TEMPLATES = {
    "chatml": CHATML,
    "bos in front": "{{ bos_token }}" + CHATML + "{{ eos_token }}",
    "json": "{{ bos_token }}{{ messages | tojson(indent=2) }}{{ {'a': '<é>'} | tojson }}",
    "date": "{{ strftime_now('%Y') }}{{ messages[-1]['content'] }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n"
    "{% endfor %}!",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }} {{ tools is defined }} {{ pad_token }}",
}
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello, größe 😀"}],
    [
        {"role": "system", "content": "  You are <b>terse</b>.\n"},
        {"role": "user", "content": "one\n\ntwo"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "a <|im_end|> in the text"},
    ],
]


def backend() -> tokenizers.Tokenizer:
    """Bytes and special tokens; BOS is put in front of plain text."""
    made = byte_tokenizer()
    made.add_special_tokens([BOS, EOS, START, END])
    made.post_processor = TemplateProcessing(
        single=[BOS, "$A"], special_tokens=[(BOS, made.token_to_id(BOS))]
    )
    return made


def tokenizer(template: str) -> Tokenizer:
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    return Tokenizer(backend(), chat_template=template, special_tokens=names)


@pytest.mark.parametrize("chat", CHATS, ids=["one", "four"])
@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers_has_it(name: str, answer: bool, chat: list[dict[str, str]]) -> None:
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token=BOS, eos_token=EOS, pad_token=EOS
    )
    theirs.chat_template = TEMPLATES[name]
    expected = theirs.apply_chat_template(
        chat, add_generation_prompt=answer, tokenize=True, return_dict=False
    )
    found = tokenizer(TEMPLATES[name]).apply_chat_template(chat, add_generation_prompt=answer)
    assert found == expected


def test_bos_comes_once_and_special_strings_are_one_token() -> None:
    made = tokenizer("{{ bos_token }}<|im_start|>{{ messages[0].content }}")
    bos, start = (made.backend.token_to_id(token) for token in (BOS, START))
    assert made.encode("x")[0] == bos
    tokens = made.apply_chat_template([{"role": "user", "content": "x"}])
    assert tokens == [bos, start, *byte_tokenizer().encode("x").ids]


def test_the_date_is_today_s() -> None:
    text = ChatTemplate("{{ strftime_now('%Y') }}", {}).render(CHATS[0])
    assert abs(int(text) - datetime.now().year) <= 1


BAD_MESSAGES: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, "messages was empty"),
    ("hi", TypeError, "messages was str"),
    ({"role": "user", "content": "x"}, TypeError, "messages was dict"),
    ([{"role": "user", "content": "x"}, "y"], TypeError, r"messages\[1\] was 'y'"),
    ([{"role": "user"}], ValueError, r"messages\[0\] had no content"),
    ([{"content": "x"}], ValueError, r"messages\[0\] had no role"),
    ([{"role": "user", "content": None}], TypeError, r"messages\[0\] had content None"),
    ([{"role": 3, "content": "x"}], TypeError, r"messages\[0\] had role 3"),
    ([{"role": "", "content": "x"}], ValueError, r"messages\[0\] had an empty role"),
]


@pytest.mark.parametrize(("messages", "error", "match"), BAD_MESSAGES, ids=str)
def test_bad_messages(messages: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        tokenizer(CHATML).apply_chat_template(messages)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{{ raise_exception('system comes first') }}", "chat template: system comes first"),
        ("{{ messages[0].content.nothing.more }}", "could not be rendered"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for %}", "is not a Jinja template"),
    ],
)
def test_bad_templates(template: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tokenizer(template).apply_chat_template(CHATS[0])


def test_without_a_template_or_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        Tokenizer(backend()).apply_chat_template(CHATS[0])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match="pip install jinja2"):
        tokenizer(CHATML).apply_chat_template(CHATS[0])


# --------------------------------------------------------------------------------- files
def test_templates_of_a_checkpoint(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).chat_template is None
    settings = tmp_path / "tokenizer_config.json"

    def loaded(template: object, bos: object = BOS) -> str:
        settings.write_text(json.dumps({"chat_template": template, "bos_token": bos}))
        made = load_tokenizer(tmp_path)
        return made.decode(made.apply_chat_template(CHATS[0]))

    text = "{{ bos_token }} {{ messages | length }}"
    assert loaded(text) == f"{BOS} 1"
    assert loaded(text, {"content": EOS, "special": True}) == f"{EOS} 1"
    several = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    assert loaded(several) == "D"
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template was 3"):
        loaded(3)
    (tmp_path / "chat_template.jinja").write_text("file")
    assert loaded(text) == "file"
    settings.write_text("{ broken")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json could not be read"):
        load_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    save_checkpoint(folder, hidden_size=32, num_layers=2, seed=0)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
    )
    return folder


def test_engine_takes_messages(checkpoint: Path) -> None:
    target, made = load_model(checkpoint), load_tokenizer(checkpoint)
    engine = Engine(target, tokenizer=made, policy="ar", threads=1)
    params = SamplingParams(max_new_tokens=8)
    chat = [{"role": "user", "content": "hi"}]
    expected = engine.generate("[user: hi]", params)
    assert engine.generate(chat, params).tokens == expected.tokens
    assert "".join(map(str, engine.stream(chat, params))) == expected.text
    assert [token for event in engine.events(chat, params) for token in event.tokens] == (
        expected.tokens
    )
    with pytest.raises(TypeError, match=r"messages\[1\] was 3"):
        engine.generate([*chat, 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="prompt was messages"):
        Engine(target, policy="ar").generate(chat)


def test_command_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--target", str(checkpoint), "--layer-skip", "1", "--max-new-tokens", "8", "--json"]

    def tokens(*argv: str) -> list[int]:
        assert main(["generate", *argv, *flags]) == 0
        found: list[int] = json.loads(capsys.readouterr().out)["tokens"]
        return found

    assert main(["generate", "--chat", "hi", "--max-new-tokens", "1"]) == EXIT_ERROR
    assert "--chat was given, but the tokenizer has no chat template" in capsys.readouterr().err
    assert tokens("--chat", "hi") == tokens("[user: hi]")
    assert tokens("--chat", "hi", "--system", "S") == tokens("[system: S][user: hi]")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["hi", "--system", "S"], "--system was given without --chat"),
        (["hi", "--chat"], "no chat template"),
        (["hi", "--layer-skip", "0"], "--layer-skip was 0"),
        (["hi", "--layer-skip", "99"], "--layer-skip was 99; it must be in 1 .. "),
        (["hi", "--layer-skip", "1", "--policy", "ar"], "--layer-skip was given with --policy ar"),
        (["hi", "--layer-skip", "1", "--draft-device", "cpu"], "--draft-device was given with"),
        (["hi", "--layer-skip", "1", "--target", ".", "--draft", "."], "exclude each other"),
        (["hi", "--policy", "ar", "--target", __file__], "checkpoint directory or a .gguf file"),
    ],
)
def test_bad_flags(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *argv]) == EXIT_ERROR
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert named in captured.err
