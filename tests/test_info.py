"""``specbranch info`` and ``--version``."""

from __future__ import annotations

import json
import platform

import pytest
import torch
from safetensors.torch import load_file

import specbranch
from specbranch import _C, ops
from specbranch.cli import EXIT_ERROR, main
from specbranch.pair import DEMO_DIR


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


def test_what_a_model_needs(capsys, tmp_path):
    config = DEMO_DIR / "target"
    assert (
        main(["info", "--json", "--target", str(config), "--draft", str(DEMO_DIR / "draft")]) == 0
    )
    found = json.loads(capsys.readouterr().out)["models"]
    target, draft, _ = specbranch.demo_pair()
    for model, described in ((target, found["target"]), (draft, found["draft"])):
        cache = model.new_state(model.max_seq_len, 1).cache
        per_token = cache.nbytes // cache.slots
        assert described["family"] == "llama"
        assert described["cache_bytes"]["float32"] == per_token * model.max_seq_len
        assert described["cache_bytes"]["bfloat16"] == per_token * model.max_seq_len // 2
    weights = load_file(config / "model.safetensors")
    assert found["target"]["parameters"] == sum(each.numel() for each in weights.values())
    size = (config / "model.safetensors").stat().st_size
    assert found["target"]["weight_bytes"] == size
    assert main(["info", "--target", str(config)]) == 0
    text = capsys.readouterr().out
    assert f"llama, {found['target']['parameters']:,} parameters" in text
    assert "draft" not in text
    assert main(["info", "--target", str(tmp_path / "none")]) == EXIT_ERROR
    assert "--target was" in capsys.readouterr().err
    assert main(["info", "--target", str(tmp_path)]) == EXIT_ERROR
    assert "config.json does not exist" in capsys.readouterr().err
