"""The model card: what a checkpoint was trained on, how, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darl_rerank.model.calibration import Calibration
from darl_rerank.model.checkpoint import Checkpoint

from .data.training_set import TrainingSet
from .recipe.settings import Recipe

_PURPOSE = """
Judges how well a document answers a query, on the scale below, and so orders what a first stage has retrieved. Trained
with DaRL as implemented in darl-rerank: the idea is that of Liu et al., "Boosting LLM-based Relevance Modeling with
Distribution-Aware Robust Learning" (arXiv 2412.12504); the formulas are from the sources that the code names.
"""


def model_card(
    checkpoint: Checkpoint,
    recipe: Recipe,
    data: TrainingSet,
    results: Mapping[str, Any],
    earlier: Sequence[Mapping[str, Any]] = (),
    adapter_rank: int | None = None,
) -> str:
    """The card as Markdown, without the metadata that `Checkpoint.card` puts before it.

    Args:
        checkpoint: the trained one.
        recipe: of the training.
        data: what it was trained on.
        results: what each stage returned.
        earlier: the provenance of each training of the checkpoint that this one began with, oldest first.
        adapter_rank: of the adapter of that checkpoint, if LoRA trained on it.
    """
    grades = "\n".join(f"| {k} | {g.name} | {g.gain:g} |" for k, g in enumerate(checkpoint.scale.grades))
    parts = [
        "# A darl-rerank checkpoint",
        _PURPOSE.strip(),
        f"Base model: {checkpoint.base.name}. Prompts of at most {checkpoint.prompt.max_length} tokens.",
        f"| grade | name | gain |\n|---|---|---|\n{grades}",
        "## Data",
        _data(data),
        "## Training",
        _training(recipe, results, adapter_rank),
    ]
    if earlier:
        parts += ["## Trained before", _earlier(earlier)]
    if "evaluate" in results:
        parts += ["## Measures", _measures(results["evaluate"])]
    parts += [
        "## Use",
        "```python\nfrom darl_rerank import Reranker\n\nreranker = Reranker.from_pretrained(folder)\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _data(data: TrainingSet) -> str:
    rows = ["| source | use | queries | pairs | held out | licence |", "|---|---|---|---|---|---|"]
    for source in data.sources:
        own = source.source
        counts = source.counts
        licence = own.licence or "not stated in the recipe"
        rows.append(
            f"| {own.name} | {own.use} | {counts['queries']} | {len(source.train)} | {len(source.dev)} | {licence} |"
        )
    maps = [
        f"- {source.source.name}: " + ", ".join(f"{label} → {_target(t)}" for label, t in source.source.grades.items())
        for source in data.sources
        if source.source.grades is not None
    ]
    text = "\n".join(rows)
    if maps:
        text += "\n\nLabels were mapped onto the scale:\n\n" + "\n".join(maps)
    if data.overlaps:
        text += "\n\nOverlap, counted:\n\n" + "\n".join(f"- {line}" for line in data.overlaps)
    return text


def _target(target: Any) -> str:
    if isinstance(target, int):
        return str(target)
    return "{" + ", ".join(f"{grade}: {p:g}" for grade, p in target.items()) + "}"


def _training(recipe: Recipe, results: Mapping[str, Any], adapter_rank: int | None) -> str:
    lines = []
    if (probe := results.get("probe")) is not None:
        lines.append(
            f"- Linear probe: {probe['epochs']} epochs, loss on held-out pairs {probe['loss_before']:.4f} → "
            f"{probe['loss_after']:.4f}, weight norm {probe['norm']:.2f} of the first."
        )
    if (select := results.get("select")) is not None:
        labels = results["labels"]
        lines.append(
            f"- Selection: {select['strategy']}, {select['chosen']['pairs']} of {select['pool']['pairs']} pairs; "
            f"labels: {labels['labels']}, {labels['pairs']} pairs."
        )
    weights, settings = recipe.trainable, recipe.finetune
    lora = f"LoRA of rank {weights.rank}" if adapter_rank is None else f"its adapter of rank {adapter_rank} (LoRA)"
    what = {"lora": lora, "all": "all linear layers", "head": "the head"}[weights.weights]
    where = "" if weights.layers is None else f", last {weights.layers} layers"
    for seed in recipe.seeds:
        tuned = results[f"finetune-{seed}"]
        lines.append(
            f"- Fine-tuning, seed {seed}: {what}{where}; loss {settings.loss}, learning rate "
            f"{settings.learning_rate:g}, batch {settings.batch}; {tuned['examples']} examples in {tuned['steps']} "
            f"steps, {tuned['seconds'] / 60:.1f} minutes, loss {tuned['loss']:.4f}."
        )
    if recipe.replay is not None:
        lines.append(f"- Replay: {recipe.replay:g} original examples for each selected one.")
    curve = results["merge"]["curve"]
    if curve is not None:
        lines.append(f"- Interpolation: α = {curve['chosen']:g}, chosen by {curve['chosen_by']}.")
    if weights.delivered_rank is not None:
        lines.append(
            f"- Delivered as an adapter of rank {weights.delivered_rank}, which holds {results['merge']['kept']:.0%} "
            "of the squared difference of the weights."
        )
    if (against := results["merge"].get("against_earlier")) is not None:
        lines.append("- " + against_earlier(against))
    if (fit := results.get("calibrate")) is not None:
        lines.append(
            f"- Calibration on {fit['pairs']} pairs: {Calibration.from_dict(fit['calibration'])}; "
            f"NLL {fit['nll_before']:.4f} → {fit['nll_after']:.4f}, ECE "
            f"{fit['ece_before']:.4f} → {fit['ece_after']:.4f}."
        )
        if fit["at_bound"]:
            lines.append(f"- The held-out pairs do not determine {fit['at_bound']}, which calibration does without.")
    if (found := results.get("exits")) is not None:
        lines.append(_exits(found, recipe))
    return "\n".join(lines)


def _exits(found: Mapping[str, Any], recipe: Recipe) -> str:
    weight = 0.0 if recipe.exits is None else recipe.exits.weight
    trained = f"their losses counted {weight:g} each in fine-tuning" if weight else "fitted to the finished model"
    line = f"- Early exits behind layers {', '.join(map(str, found['layers']))}, {trained}; "
    if "rule" not in found:
        return f"{line}nothing leaves: {found['no rule']}."
    facts = found["rule"]["facts"]
    return (
        f"{line}the rule promises {found['rule']['promise']}. Of {facts['pairs']} held-out pairs {facts['left']:.0%} "
        f"leave, of {facts['relevant']} that deserve a place {facts['relevant_left']}."
    )


def against_earlier(found: Mapping[str, Any]) -> str:
    """Which of the two models was taken, the one that the training began with or the trained one, and why."""
    kept = "the earlier model is kept as it was" if found["keep"] else "the trained model is taken"
    return (
        f"On {found['pairs']} held-out pairs the ranked probability score is {found['earlier']:.4f} for the earlier "
        f"model and {found['trained']:.4f} for the trained one, both temperature-scaled (lower is better): {kept}."
    )


def _earlier(trainings: Sequence[Mapping[str, Any]]) -> str:
    text = ["This training began with a checkpoint that had been trained itself; oldest first:\n"]
    for number, facts in enumerate(trainings, 1):
        recipe = facts["recipe"]
        examples = sum(facts["stages"][f"finetune-{seed}"]["examples"] for seed in recipe["seeds"])
        text.append(f"{number}. Loss {recipe['finetune']['loss']}, {examples} examples, of")
        # A line for each source, then what they have in common.
        for source, line in zip(recipe["sources"], facts["data"].splitlines(), strict=False):
            text.append(f"   - {line}; licence: {source['licence'] or 'not stated in the recipe'}")
    return "\n".join(text)


def _measures(evaluation: Mapping[str, Any]) -> str:
    groups = evaluation["groups"]
    names = list(next(iter(groups.values()))["measures"])
    rows = ["| measure | " + " | ".join(f"{g} ({v['pairs']} pairs)" for g, v in groups.items()) + " |"]
    rows.append("|---" * (len(groups) + 1) + "|")
    for name in names:
        rows.append(f"| {name} | " + " | ".join(_interval(v["measures"][name]) for v in groups.values()) + " |")
    return "With 95 % intervals from a bootstrap over queries:\n\n" + "\n".join(rows)


def _interval(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "–"
    if value["low"] is None:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
