"""A small checkpoint at the cost of a large one: the same function in wider and deeper matrices.

    python bench/inflate.py --source specbranch/demo/target --shape 1b --out FOLDER

For measuring real cost with real acceptance where no large checkpoint is at hand. The source
(Llama, no biases) is embedded so that its logits stay what they were:

- Width. The residual stream is the old one, then one constant, then zeros. RMSNorm's mean runs
  over d' instead of d values: norm weights are multiplied by sqrt(d / d') and eps by d / d'.
- Heads. Rotary pair i of D / 2 turns as fast as pair i D' / D of D' / 2, so that is where it goes;
  the keys' other dimensions are zero. Queries carry sqrt(D' / D), the scale of the scores. Where a
  key-value head has more query heads than one of the new ones takes, it is repeated.
- Depth. Additional layers come first; their values and gates are zero, so they add zero.
- Vocabulary. The constant is there for the rows that are added to the head: after the final norm
  it is positive, and their weight on it is very negative, so that no such token has any
  probability. It counts in the mean of squares; eps is smaller by just that much.

One rule makes all matrices: random numbers everywhere, zeros in the columns of the inputs that
carry something, the old weights in their places among those zeros. So whatever the inputs that are
always zero meet is random, and the bytes that are read look like a real model's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from shapes import SHAPES, HeadMap, Shape, check_fits, named_shape, tensor_shapes

from specbranch.models import LlamaModel, model_from_tensors
from specbranch.models.config import LlamaConfig, read_config, read_json

STD = 0.02  # of random weights, as models of this family are initialised
SHARD_BYTES = 2 << 30
# A padding token's logit is about this over the RMS of the last residual (10 to 100 in the demo
# pair): far below exp's reach in float32 at any usual temperature, far from bfloat16's end.
PADDING_LOGIT = -1e6


class Inflation(Mapping[str, torch.Tensor]):
    """The tensors of an inflated checkpoint by name, each made when it is asked for.

    The same arguments give the same values on the same kind of device.

    Args:
        source: checkpoint directory of a Llama without biases.
        shape: a name of ``SHAPES`` or a ``Shape``.
        seed: of the random weights.
        device, dtype: of the tensors.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read or does not fit into the shape.
    """

    def __init__(
        self,
        source: str | Path,
        shape: str | Shape,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.folder = Path(source)
        self.shape = shape if isinstance(shape, Shape) else named_shape(shape)
        self.device, self.dtype, self.seed = torch.device(device), dtype, seed
        self.small = read_config(self.folder)
        check_fits(self.small, self.shape)
        self._old = _read_tensors(self.folder, self.small)
        self._first_layer = self.shape.layers - self.small.num_layers  # the old first one
        # A power of two is exact in every dtype; its square must leave something of eps.
        room = math.sqrt(self.small.norm_eps * self.small.hidden_size / 2)
        self._constant = 2.0 ** math.floor(math.log2(room))
        self._norm_scale = math.sqrt(self.small.hidden_size / self.shape.hidden)
        self._heads = HeadMap(self.small, self.shape)
        self._shapes = dict(tensor_shapes(self.shape))
        self._makers: dict[str, Callable[[torch.Tensor, torch.Tensor | None], None]] = {
            "embed_tokens": self._embedding,
            "input_layernorm": self._norm,
            "q_proj": self._query,
            "k_proj": self._key,
            "v_proj": self._value,
            "o_proj": self._out,
            "post_attention_layernorm": self._norm,
            "gate_proj": self._gate,
            "up_proj": self._up,
            "down_proj": self._down,
            "norm": self._final_norm,
            "lm_head": self._head,
        }

    # ------------------------------------------------------------------ the mapping
    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __getitem__(self, name: str) -> torch.Tensor:
        values = self._random(name)
        self._makers[name.split(".")[-2]](values, self._old_tensor(name))
        return values

    @property
    def num_parameters(self) -> int:
        """Of the inflated model."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def num_bytes(self) -> dict[str, int]:
        """Size of each tensor."""
        return {
            name: math.prod(shape) * self.dtype.itemsize for name, shape in self._shapes.items()
        }

    # ------------------------------------------------------------------ configuration
    @property
    def config(self) -> LlamaConfig:
        """What the loader would read from the inflated checkpoint."""
        return dataclasses.replace(
            self.small,
            **self.shape.in_config(),
            norm_eps=self._norm_eps(),
            tied=False,
            stored_dtype=self.dtype,
        )

    def config_json(self) -> dict[str, Any]:
        """``config.json`` of the inflated checkpoint."""
        raw, shape = read_json(self.folder / "config.json"), self.shape
        changes = {
            "vocab_size": shape.vocab,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "rms_norm_eps": self._norm_eps(),
            "tie_word_embeddings": False,
        }
        was = {key: raw[key] for key in changes if key in raw}
        raw = {key: value for key, value in raw.items() if key not in ("dtype", "torch_dtype")}
        name = str(self.dtype).removeprefix("torch.")
        return raw | changes | {"torch_dtype": name, "inflated_from": was}

    def _norm_eps(self) -> float:
        """The old eps less what the constant adds to the mean of squares, over d' values."""
        width = self.small.hidden_size
        return (self.small.norm_eps - self._constant**2 / width) * width / self.shape.hidden

    # ------------------------------------------------------------------ raw material
    def _random(self, name: str) -> torch.Tensor:
        """Random weights that depend on the seed and the tensor's name alone."""
        generator = torch.Generator(self.device)
        generator.manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        values = torch.empty(self._shapes[name], dtype=self.dtype, device=self.device)
        if values.dim() == 1:
            return values.uniform_(0.5, 1.5, generator=generator)
        return values.normal_(std=STD, generator=generator)

    def _old_tensor(self, name: str) -> torch.Tensor | None:
        """The source's tensor that goes into tensor ``name``; None in an additional layer."""
        parts = name.split(".")
        if parts[1] == "layers":
            idx = int(parts[2]) - self._first_layer
            if idx < 0:
                return None
            parts[2] = str(idx)
        return self._old[".".join(parts)].to(self.device)

    @property
    def _width(self) -> int:
        return self.small.hidden_size

    @property
    def _live(self) -> int:
        """How many of the residual's values are not always zero: the old ones, the constant."""
        return self._width + 1

    # ------------------------------------------------------------------ the residual's ends
    def _embedding(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        assert old is not None, "there is one"
        rows = values[: len(old)]
        rows.zero_()
        rows[:, : self._width] = old.to(self.dtype)
        rows[:, self._width] = self._constant

    def _norm(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        if old is not None:
            values[: self._width] = (old * self._norm_scale).to(self.dtype)

    def _final_norm(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        self._norm(values, old)
        values[self._width] = self._norm_scale / self._constant  # 1 / RMS comes out

    def _head(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        assert old is not None, "there is one"
        self._embed(values[: len(old)], old)
        padding = values[len(old) :, self._width]
        padding.copy_(PADDING_LOGIT * (1 + padding.abs()))

    # ------------------------------------------------------------------ attention
    def _embed(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        """All outputs of a matrix ``[out, d']`` ignore the residual, but the old ones."""
        values[:, : self._live] = 0
        if old is not None:
            values[: len(old), : self._width] = old.to(self.dtype)

    def _query(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        # What is random here meets keys that are zero, or a head whose values are.
        if old is not None:
            rows = self._heads.query_rows
            scaled = old * math.sqrt(self.shape.head_dim / self.small.head_dim)
            values[rows, : self._live] = 0
            values[rows, : self._width] = scaled.to(self.dtype)

    def _key(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        if old is not None:
            values[: self._heads.num_live_rows, : self._live] = 0
            values[self._heads.key_rows, : self._width] = self._repeated(old)

    def _value(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        self._embed(values, None)
        if old is not None:
            values[self._heads.value_rows, : self._width] = self._repeated(old)

    def _repeated(self, old: torch.Tensor) -> torch.Tensor:
        """Rows of the old key-value heads, as often as there are new heads for each."""
        by_head = old.view(self.small.num_kv_heads, self.small.head_dim, -1)
        by_head = by_head.repeat_interleave(self._heads.repeats, 0)
        return by_head.flatten(0, 1).to(self.dtype)

    def _out(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        if old is not None:
            values[:, self._heads.live_columns] = 0
            values[: self._width, self._heads.out_columns] = old.to(self.dtype)

    # ------------------------------------------------------------------ MLP
    def _gate(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        self._embed(values, old)  # silu(0) is 0, whatever `up` says

    def _up(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        if old is not None:
            self._embed(values[: len(old)], old)

    def _down(self, values: torch.Tensor, old: torch.Tensor | None) -> None:
        if old is not None:
            columns = values[:, : old.shape[1]]
            columns.zero_()
            columns[: self._width] = old.to(self.dtype)


def _read_tensors(folder: Path, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """All tensors of the source in float32; a tied head under its own name too."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {name: tensor.float() for name, tensor in load_file(path).items()}
    if config.tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return tensors


# ---------------------------------------------------------------------------- what comes out
def inflate(
    source: str | Path,
    out: str | Path,
    shape: str | Shape,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the inflated checkpoint directory ``out``, in files of at most ``shard_bytes``.

    Raises:
        FileNotFoundError, ValueError: as for ``Inflation``.
    """
    inflation, folder = Inflation(source, shape, seed=seed, dtype=dtype), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", inflation.config_json())
    for name in ("tokenizer.json", "generation_config.json"):
        if (inflation.folder / name).is_file():
            shutil.copyfile(inflation.folder / name, folder / name)
    shards = _shards(inflation.num_bytes, shard_bytes)
    files = [f"model-{idx + 1:05d}-of-{len(shards):05d}.safetensors" for idx in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        save_file({name: inflation[name] for name in names}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    total = {"total_size": sum(inflation.num_bytes.values())}
    index = {"metadata": total, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _shards(num_bytes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups of at most ``limit`` bytes (or of one tensor)."""
    shards: list[list[str]] = []
    left = 0
    for name, size in num_bytes.items():
        if size > left or not shards:
            shards.append([])
            left = limit
        shards[-1].append(name)
        left -= size
    return shards


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def our_model(inflation: Inflation) -> LlamaModel:
    """The inflated model in this library, made where its tensors are: no file is written."""
    return model_from_tensors(
        inflation.config, inflation, dtype=inflation.dtype, device=inflation.device
    )


def transformers_model(inflation: Inflation) -> Any:
    """The same in transformers."""
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    config = TheirConfig(**inflation.config_json())
    with torch.device(inflation.device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=inflation.dtype).eval()
    weights = dict(model.named_parameters())
    if weights.keys() != inflation.keys():
        raise ValueError(f"transformers has other tensors: {weights.keys() ^ inflation.keys()}")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(inflation[name])
    return model


def main() -> None:
    """Write one inflated checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    args = parser.parse_args()
    try:
        dtype = getattr(torch, args.dtype)
        inflate(args.source, args.out, args.shape, seed=args.seed, dtype=dtype)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
