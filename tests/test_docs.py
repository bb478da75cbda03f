"""What the documentation promises exists: links, flags, commands, and code that compiles."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from specbranch.cli.options import parse

ROOT = Path(__file__).resolve().parent.parent
TOPICS = (
    "architectures", "batches", "design", "hrad", "kernels", "losslessness", "method", "planning",
    "weights",
)  # fmt: skip
DOCS = [f"docs/{name}.md" for name in TOPICS]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]
LINK = re.compile(r"\]\(([^)#]+)\)")


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    links = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if ":" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        compile(block, page, "exec")


def test_the_readme_opens_with_two_commands_that_set_everything_up():
    commands = [
        line for line in blocks("README.md", "bash")[0].splitlines() if not line.startswith("#")
    ]
    generate, test = [line for line in commands if line]
    for command in (generate, test):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert "-c constraints.txt" in command
    assert ".venv/bin/specbranch generate" in generate and "pytest" in test


def test_flags_in_the_readme_are_those_of_the_command(capsys):
    with pytest.raises(SystemExit):
        parse(["generate", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) | {"--json"}
    for block in blocks("README.md", "bash"):
        for line in block.splitlines():
            if "specbranch generate" in line:
                used = line.split("specbranch generate", 1)[1]
                assert set(re.findall(r"--[a-z][a-z-]+", used)) <= known


def test_the_table_of_architectures_is_what_was_measured():
    found = json.loads((ROOT / "bench/results/architectures.json").read_text(encoding="utf-8"))
    measured = [
        f"| {row['architecture']} | {row['attention']} | {row['max_error']:.1e} |"
        for row in found["served"]
    ]
    measured += [f"| {row['architecture']} | {row['reason']} |" for row in found["refused"]]
    page = (ROOT / "docs/architectures.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in page if re.match(r"\| \w+(ForCausalLM|LMHeadModel) \|", line)]
    assert table == measured
    assert f"With transformers {found['transformers']} " in "\n".join(page)
