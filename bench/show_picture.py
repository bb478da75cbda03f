"""Draws docs/show.svg: what ``specbranch generate --show`` prints, from a real run.

python bench/show_picture.py [--out F] [PROMPT] [flags of specbranch generate]
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from specbranch.cli.show import COLOURS, MEANINGS, runs, strip

ROOT = Path(__file__).resolve().parent.parent
NUM_COLUMNS = 88
LINE_HEIGHT, CHARACTER_WIDTH, MARGIN = 19, 8.43, 16
FILLS = {
    "plain": "#c8ccd4", "chain": "#7ec97f", "branch": "#56b6e8", "recovered": "#f07178",
    "bonus": "#e5c07b", "": "#c8ccd4", "prompt": "#7f848e",
}  # fmt: skip
STYLE = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:14px"

Run = tuple[str, str]  # origin, text


def main() -> int:
    """Run the command line and draw what it printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "show.svg")
    parser.add_argument("prompt", nargs="?", default="def read_file(path):")
    args, flags = parser.parse_known_args()
    flags = flags or ["--max-new-tokens", "128", "--temperature", "0.5", "--seed", "1"]
    command = ["generate", args.prompt, *flags, "--show", "--stats"]
    done = subprocess.run(
        [sys.executable, "-m", "specbranch", *command], capture_output=True, text=True
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        return done.returncode
    shown = merged([("prompt", args.prompt), *runs(done.stdout)])
    lines = [*wrap([("prompt", "$ specbranch " + shlex.join(command))]), []]
    lines += wrap(shown)
    lines += [[], *_legend_lines()]
    lines += [[("prompt", text)] for text in strip(done.stderr).splitlines()[1:]]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(svg(lines), encoding="utf-8")
    return 0


def wrap(shown: Iterable[Run]) -> Iterator[list[Run]]:
    """Runs to lines: cut at newlines and at the last column."""
    line: list[Run] = []
    column = 0
    for origin, text in shown:
        for part in text.replace("\t", "    ").splitlines(keepends=True):
            rest = part.rstrip("\r\n")
            while column + len(rest) > NUM_COLUMNS:
                line.append((origin, rest[: NUM_COLUMNS - column]))
                rest = rest[NUM_COLUMNS - column :]
                yield line
                line, column = [], 0
            line.append((origin, rest))
            column += len(rest)
            if part != part.rstrip("\r\n"):
                yield line
                line, column = [], 0
    yield line


def _legend_lines() -> Iterator[list[Run]]:
    names = list(COLOURS)
    for first in range(0, len(names), 3):
        yield [
            (name, f"{name}: {MEANINGS[name]}".ljust(NUM_COLUMNS // 3))
            for name in names[first : first + 3]
        ]


def merged(shown: Iterable[Run]) -> Iterator[Run]:
    """Neighbours of one colour as one run."""
    for origin, group in itertools.groupby(shown, key=lambda run: run[0]):
        yield origin, "".join(text for _, text in group)


def svg(lines: list[list[Run]]) -> str:
    """A dark terminal with one text element a line."""
    width = NUM_COLUMNS * CHARACTER_WIDTH + 2 * MARGIN
    height = len(lines) * LINE_HEIGHT + 2 * MARGIN
    texts = []
    for idx, line in enumerate(lines):
        spans = "".join(
            f'<tspan fill="{FILLS[origin]}">{escape(_printable(text))}</tspan>'
            for origin, text in line
            if text
        )
        y = MARGIN + (idx + 0.75) * LINE_HEIGHT
        texts.append(f'<text x="{MARGIN}" y="{y:g}" xml:space="preserve">{spans}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" style="{STYLE}">\n'
        f'<rect width="100%" height="100%" rx="8" fill="#20242c"/>\n'
        + "\n".join(texts)
        + "\n</svg>\n"
    )


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


if __name__ == "__main__":
    sys.exit(main())
