"""Probe: the head alone is trained, on final states that are computed once; see `loop.probe`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.model.head import Head, Link

from ..context import Context
from ..data.features import PairFeatures, extract_features
from ..data.labels import label_matrix, numbered
from ..loop.probe import fit_probe
from ..losses.comparison import link_of


def run(context: Context, folder: Path) -> dict[str, Any]:
    """Write the probed checkpoint; returns what `fit_probe` says of it."""
    recipe, data = context.recipe, context.data
    reranker = context.reranker(context.checkpoint("start"))
    checkpoint = reranker.checkpoint
    sets = {}
    for name, pairs in (("training", data.train), ("held-out", data.dev)):
        found = extract_features(
            reranker, pairs, folder / name, progress=context.progress, description=f"features, {name}"
        )
        states = final_states(found, checkpoint.head, checkpoint.link)
        sets[name] = (states, label_matrix(pairs, recipe.grades), numbered(pair.qid for pair in pairs))
    weights = np.concatenate(
        [np.full(len(s.train), s.source.weight, np.float32) for s in data.sources if s.source.use == "train"]
    )
    outcome = fit_probe(
        checkpoint.head, *sets["training"], sets["held-out"], checkpoint.scale.gains,
        loss=recipe.finetune.loss, terms=recipe.finetune.occ, settings=recipe.probe,
        weights=weights, seed=recipe.seed, progress=context.progress,
    )  # fmt: skip
    link = link_of(recipe.finetune.loss)
    checkpoint.replace(head=outcome.head, link=link, trained=True).save(folder / "checkpoint", overwrite=True)
    return {key: value for key, value in asdict(outcome).items() if key != "head"}


def final_states(features: PairFeatures, head: Head, link: Link = "softmax") -> NDArray[np.float32]:
    """The final hidden states behind `features`, shape (n, hidden).

    Novelty features hold them scaled to unit length, u. Their length ℓ follows from the head's outputs, z = ℓ·W u + b:
    ℓ = ⟨z − b, W u⟩ / ‖W u‖². So one pass over the pairs serves probing and novelty. Of a CORN head the logits give the
    differences of neighbouring outputs, and ℓ follows from these.

    Args:
        features: of the model that `head` belongs to.
        head: its head.
        link: how its outputs are read.
    """
    hidden = head.weight.shape[1]
    unit = np.asarray(features.features[:, -hidden:], dtype=np.float32)
    weight, bias, outputs = head.weight, head.bias, np.asarray(features.logits)
    if link == "corn":
        # log P(y > j) − log P(y = j), of log probabilities.
        beyond = np.logaddexp.accumulate(outputs[:, ::-1], axis=1)[:, ::-1]
        weight, bias, outputs = np.diff(weight, axis=0), np.diff(bias), beyond[:, 1:] - outputs[:, :-1]
    along = unit @ weight.T
    length = ((outputs - bias) * along).sum(1) / np.square(along).sum(1).clip(1e-12)
    return np.asarray(unit * length[:, None], dtype=np.float32)
