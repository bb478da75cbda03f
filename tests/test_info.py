"""``specbranch info`` and ``--version``."""

from __future__ import annotations

import json
import platform

import pytest
import torch

import specbranch
from specbranch import _C, ops
from specbranch.cli import main


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"specbranch {specbranch.__version__}\n"


def test_json_says_what_is_installed(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"] == {
        "specbranch": specbranch.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    assert found["backends"] == ops.backends()
    assert found["backends"]["cpu"] is True
    assert any(device.startswith("cpu") for device in found["devices"])
    assert len(found["devices"]) == 1 + torch.cuda.device_count()
    assert found["build"] == _C.build_info()


def test_text_says_the_same(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for version in found["versions"].values():
        assert version in text
    for name in (*found["backends"], *found["build"], *found["devices"]):
        assert name in text
