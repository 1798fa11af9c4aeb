"""A full fine-tune delivered as a small adapter: the difference of the weights, cut to low rank.

By the theorem of Eckart and Young (1936) the truncated singular value decomposition is the nearest matrix of its rank,
so this is the best adapter of that size for each weight; how much of the difference it holds is reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darl_rerank.errors import InputError
from darl_rerank.files import temporary_folder
from darl_rerank.model.base_weights import load_causal_lm, weights_of
from darl_rerank.model.checkpoint import Checkpoint

# Half of what float8_e4m3fn holds, 448.
LARGEST_FLOAT8 = 224.0
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class LowRank:
    """An adapter cut from a full difference.

    Attributes:
        factors: by module name, A (rank, in) and B (out, rank); B·A is the kept difference.
        rank: of each of them.
        kept: share of the squared Frobenius norm of all differences that is kept, 0..1.
        dropped: names of changed weights that no linear layer holds and that the adapter can't carry.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    rank: int
    kept: float
    dropped: tuple[str, ...]


def low_rank_difference(base: nn.Module, tuned: nn.Module, rank: int) -> LowRank:
    """The difference of two models of the same shape, of at most `rank` in every linear layer.

    Args:
        base, tuned: transformers causal LMs; their LM heads are ignored.
        rank: at least 1.

    Raises:
        InputError: a rank below 1, or models of different shape.
    """
    if rank < 1:
        raise InputError(f"the rank must be at least 1, got {rank}")
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    if before.keys() != after.keys() or any(before[n].shape != after[n].shape for n in before):
        raise InputError("the two models have different weights: no difference can be taken")
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    dropped = []
    kept = total = 0.0
    for name, old in before.items():
        difference = (after[name].detach().float() - old.detach().float()).cpu()
        if not bool(difference.any()):
            continue
        total += float(difference.square().sum())
        module = name.removesuffix(".weight")
        if module not in linear or "lm_head" in module:
            dropped.append(name)
            continue
        u, s, v = torch.linalg.svd(difference, full_matrices=False)
        size = min(rank, len(s))
        root = s[:size].sqrt()
        b, a = u[:, :size] * root, root[:, None] * v[:size]
        kept += float(s[:size].square().sum())
        # PEFT wants one rank for all: a thin layer is filled up with zeros.
        factors[module] = (_padded(a, rank, 0), _padded(b, rank, 1))
    return LowRank(factors, rank, kept / total if total else 1.0, tuple(dropped))


def save_as_adapter(
    low_rank: LowRank, folder: str | Path, *, base_name: str, dtype: torch.dtype = torch.float16
) -> int:
    """Write a PEFT adapter (LoRA, alpha = rank) and return its weights' size in bytes.

    Args:
        low_rank: what to write.
        folder: made if it is not there.
        base_name: what the adapter's configuration calls its base model.
        dtype: of the stored factors. With torch.float8_e4m3fn they are `balanced` over its range first and alpha is
            what undoes it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    factors, scale = low_rank.factors, 1.0
    if dtype == torch.float8_e4m3fn:
        factors, scale = balanced(factors, LARGEST_FLOAT8)
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in factors.items():
        for letter, factor in (("A", a), ("B", b)):
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = factor.to(dtype).contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": low_rank.rank,
        "lora_alpha": low_rank.rank / scale,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(low_rank.factors),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    path = folder / _WEIGHTS
    save_file(tensors, path, metadata={"format": "pt"})
    return path.stat().st_size


def read_adapter(folder: str | Path) -> LowRank:
    """A LoRA adapter of one rank as PEFT writes it.

    Raises:
        InputError: it has several ranks, or weights that are not LoRA's.
    """
    folder = Path(folder)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("use_rslora") or config.get("use_dora"):
        raise InputError("expected a LoRA adapter of one rank", path=folder / "adapter_config.json")
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / _WEIGHTS).items():
        module, found, letter = name.removesuffix(".weight").rpartition(".lora_")
        if not found:
            raise InputError(f"expected LoRA weights only, found {name}", path=folder / _WEIGHTS)
        factors.setdefault(module.removeprefix("base_model.model."), {})[letter] = tensor.float()
    scaling = config["lora_alpha"] / config["r"]
    return LowRank({m: (pair["A"], pair["B"] * scaling) for m, pair in factors.items()}, config["r"], 1.0, ())


def balanced(
    factors: Mapping[str, tuple[Tensor, Tensor]], largest: float | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Factors of which in each row of A and its column of B the largest value is alike.

    Args:
        factors: by module name, A (rank, in) and B (out, rank).
        largest: scale all of them so that this is the largest value; their product stays as it is if None.

    Returns:
        factors A' and B', and the number c with B'·A' = c · B·A.
    """
    # Per component of the sum B·A: the largest values of its row of A and of its column of B.
    peaks = {name: (a.abs().amax(dim=1), b.abs().amax(dim=0)) for name, (a, b) in factors.items()}
    c = 1.0
    if largest is not None:
        c = largest**2 / max([float((p * q).max()) for p, q in peaks.values()], default=largest**2)
    result = {}
    for name, (a, b) in factors.items():
        p, q = peaks[name]
        share = torch.where(p * q > 0, (c * q / p.clamp_min(1e-30)).sqrt(), torch.ones_like(p))
        result[name] = (a * share[:, None], b * torch.where(p * q > 0, c / share, torch.ones_like(share)))
    return result, c


def mean_adapter(adapters: Sequence[LowRank]) -> LowRank:
    """The mean of the differences that adapters make, cut to the first one's rank.

    Source: Wortsman et al., "Model soups" (ICML 2022). Unlike the mean of the factors it is the mean of the weights.

    Args:
        adapters: at least one; their ranks may differ. A module that one of them lacks is the base model's there.

    Raises:
        InputError: there are none.
    """
    if not adapters:
        raise InputError("a mean needs at least one adapter")
    rank = adapters[0].rank
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    kept = total = 0.0
    for module in dict.fromkeys(name for adapter in adapters for name in adapter.factors):
        pairs = [adapter.factors[module] for adapter in adapters if module in adapter.factors]
        a = torch.cat([down for down, _ in pairs])
        b = torch.cat([up for _, up in pairs], dim=1) / len(adapters)
        # The product's singular values are those of the small matrix between two orthogonal ones.
        left, inner_left = torch.linalg.qr(b)
        right, inner_right = torch.linalg.qr(a.T)
        u, s, v = torch.linalg.svd(inner_left @ inner_right.T)
        size = min(rank, len(s))
        kept, total = kept + float(s[:size].square().sum()), total + float(s.square().sum())
        root = s[:size].sqrt()
        first, second = (v[:size] * root[:, None]) @ right.T, (left @ u[:, :size]) * root
        factors[module] = (_padded(first, rank, 0), _padded(second, rank, 1))
    return LowRank(factors, rank, kept / total if total else 1.0, ())


def largest_rank(base: nn.Module, layers: int | None, max_bytes: int, *, dtype: torch.dtype = torch.float16) -> int:
    """The largest rank at which an adapter on the linear layers of the last `layers` layers stays within `max_bytes`.

    Raises:
        InputError: not even rank 1 does.
    """
    blocks = _blocks(base)
    chosen = blocks if layers is None else blocks[len(blocks) - layers :]
    size = torch.empty((), dtype=dtype).element_size()
    per_rank = size * sum(
        m.in_features + m.out_features for block in chosen for m in block.modules() if isinstance(m, nn.Linear)
    )
    # Names and shapes take some 120 bytes a tensor.
    overhead = 300 * sum(isinstance(m, nn.Linear) for block in chosen for m in block.modules()) + 4096
    rank = (max_bytes - overhead) // per_rank
    if rank < 1:
        raise InputError(f"an adapter of rank 1 takes {per_rank + overhead} bytes, {max_bytes} are allowed")
    return int(rank)


def as_adapter(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    rank: int | None = None,
    max_mib: float = 16.0,
    overwrite: bool = False,
) -> tuple[Checkpoint, LowRank]:
    """A fully fine-tuned checkpoint as one with an adapter on its base model.

    Args:
        checkpoint: with the whole model's weights.
        folder: of the new checkpoint.
        rank: of the adapter; the largest that `max_mib` allows if None.
        max_mib: most MiB of the adapter.
        overwrite: replace an existing checkpoint.

    Raises:
        InputError: `checkpoint` has no weights of its own, or changed weights that an adapter can't carry.
    """
    if checkpoint.model_folder is None:
        raise InputError("expected a checkpoint with the whole model's weights", path=checkpoint.folder)
    base = load_causal_lm(checkpoint.base, torch.float32)
    tuned = load_causal_lm(weights_of(checkpoint), torch.float32)
    if rank is None:
        rank = largest_rank(base, _changed_layers(base, tuned), int(max_mib * 2**20))
    low_rank = low_rank_difference(base, tuned, rank)
    if low_rank.dropped:
        raise InputError(f"an adapter can't carry the change of {', '.join(low_rank.dropped[:3])}")
    with temporary_folder(folder) as temporary:
        save_as_adapter(low_rank, temporary / "adapter", base_name=checkpoint.base.name)
        saved = checkpoint.save(folder, overwrite=overwrite, adapter=temporary / "adapter")
    return saved, low_rank


def _blocks(model: Any) -> Any:
    """The decoder layers of a causal LM of transformers."""
    return model.base_model.layers


def _changed_layers(base: nn.Module, tuned: nn.Module) -> int:
    """How many of the last layers reach down to the first changed one."""
    old, new = _blocks(base), _blocks(tuned)
    for i, (before, after) in enumerate(zip(old, new, strict=True)):
        if any(not torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True)):
            return len(old) - i
    return len(old)


def _padded(factor: Tensor, rank: int, dimension: int) -> Tensor:
    missing = rank - factor.shape[dimension]
    if not missing:
        return factor
    shape = list(factor.shape)
    shape[dimension] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim=dimension)
