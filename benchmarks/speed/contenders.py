"""What is compared: the engines of this package, and what people would use instead on the same weights and tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines.loading import Exit, load_engine

Run = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]
# What sentence-transformers takes if not told otherwise.
BATCH = 32
# Stands between the parts of a prompt that other libraries tokenise whole; no text has it.
_MARK = "\u241e"


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the table.

    Attributes:
        name: as shown.
        number_format: "float32", "bfloat16", "float16" or "int8": whose ceiling it is held against.
        shares_prefix: whether it runs a query's prefix once for its documents.
        load: loads it; what comes back turns pairs into grade logits, shape (n, K).
    """

    name: str
    number_format: str
    shares_prefix: bool
    load: Callable[[], Run]


def of_torch(checkpoint: Checkpoint, precision: str, device: str = "cpu") -> Contender:
    """All layers for every pair."""

    def load() -> Run:
        engine = load_engine(checkpoint, "torch", device=device, precision=precision, exit="off")
        reranker = Reranker(checkpoint, engine)
        return lambda pairs: reranker.score_pairs(pairs).logits

    return Contender(f"darl-rerank, torch, {precision}", precision, True, load)


def of_onnx(folder: Path, precision: str, device: str = "cpu", exit: Exit = "off") -> Contender:
    """All layers for every pair, or with early exits, by which no share of a ceiling can be told."""

    def load() -> Run:
        exported = Checkpoint.load(folder)
        reranker = Reranker(exported, load_engine(exported, "onnx", device=device, precision=None, exit=exit))
        return lambda pairs: reranker.score_pairs(pairs).logits

    name = f"darl-rerank, ONNX Runtime, {precision}"
    if exit == "auto":
        return Contender(f"{name}, early exits", "", True, load)
    return Contender(name, precision, True, load)


def of_cross_encoder(
    folder: Path, checkpoint: Checkpoint, precision: str, *, backend: str = "torch", device: str = "cpu"
) -> Contender:
    """sentence-transformers; `folder` is of `write_classifier`."""

    def load() -> Run:
        import torch
        from sentence_transformers import CrossEncoder

        settings: dict[str, Any] = {} if backend != "torch" else {"model_kwargs": {"dtype": getattr(torch, precision)}}
        model = CrossEncoder(
            str(folder), max_length=checkpoint.prompt.max_length, device=device, backend=backend, **settings
        )

        def run(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
            found = model.predict(
                whole_texts(checkpoint, pairs), batch_size=BATCH, activation_fn=torch.nn.Identity(),
                show_progress_bar=False,
            )  # fmt: skip
            return np.asarray(found, dtype=np.float32) + checkpoint.head.bias

        return run

    kind = precision if backend == "torch" else f"{backend} backend, {precision}"
    return Contender(f"sentence-transformers CrossEncoder, {kind}", precision, False, load)


def of_transformers(folder: Path, checkpoint: Checkpoint, precision: str, device: str = "cpu") -> Contender:
    """transformers' sequence classification on padded batches in the order given, as its examples do it."""

    def load() -> Run:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, precision))
        model = model.eval().to(device)

        def run(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
            texts = whole_texts(checkpoint, pairs)
            parts = []
            for start in range(0, len(texts), BATCH):
                first, second = zip(*texts[start : start + BATCH], strict=True)
                inputs = tokenizer(
                    list(first), list(second), padding=True, truncation=True, return_tensors="pt",
                    max_length=checkpoint.prompt.max_length,
                )  # fmt: skip
                with torch.inference_mode():
                    parts.append(model(**inputs.to(device)).logits.float().cpu().numpy())
            return np.concatenate(parts) + checkpoint.head.bias

        return run

    return Contender(f"transformers, {precision}", precision, False, load)


def whole_texts(checkpoint: Checkpoint, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Prompts in two texts, up to the document and from it on, for the tokenizer of `write_classifier`.

    Our prompt's parts are tokenised one by one; marks between them have other libraries do the same.
    """
    prompt = checkpoint.prompt
    return [
        (_MARK.join((prompt.instruction, query.strip(), prompt.separator)), document.strip() + _MARK + prompt.answer)
        for query, document in pairs
    ]


def write_classifier(checkpoint: Checkpoint, folder: Path) -> Path:
    """The checkpoint's decoder and head as a folder of transformers' sequence classification; kept if it is there."""
    marker = folder / "darl_rerank_source.json"
    source = {"fingerprint": checkpoint.fingerprint, "mark": _MARK}
    if marker.is_file() and json.loads(marker.read_text("utf-8")) == source:
        return folder
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    from darl_rerank.model.base_weights import load_body

    body = load_body(checkpoint, torch.float32)
    config = body.config
    config.num_labels = len(checkpoint.scale)
    if config.pad_token_id is None:
        config.pad_token_id = config.eos_token_id
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    setattr(model, model.base_model_prefix, body)
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(checkpoint.head.weight))
    model.save_pretrained(folder)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
    split = pre_tokenizers.Split(_MARK, "removed")
    own = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = split if own is None else pre_tokenizers.Sequence([split, own])
    pad = tokenizer.id_to_token(config.pad_token_id)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad).save_pretrained(folder)
    marker.write_text(json.dumps(source), "utf-8")
    return folder


def exported_folder(checkpoint: Checkpoint, precision: str, cache: Path) -> Path:
    """The checkpoint exported in `precision`; kept in `cache` from run to run."""
    from darl_rerank.export.folder import export

    # Of an export that the present code would not make, neither speed nor logits say anything.
    folder = cache / f"{checkpoint.fingerprint[:12]}-{_export_code()}-{precision}"
    if not folder.is_dir():
        export(checkpoint, folder, precision=precision)
    return folder


def _export_code() -> str:
    import hashlib

    import darl_rerank.export

    digest = hashlib.sha256()
    for path in sorted(Path(darl_rerank.export.__path__[0]).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def loaded(contenders: Sequence[Contender]) -> Iterator[tuple[Contender, Run | str]]:
    """Each contender with how to run it, or with the reason why it can't be."""
    for contender in contenders:
        try:
            yield contender, contender.load()
        except Exception as error:  # other libraries raise what they like; the reason goes into the table
            text = str(error).strip()
            yield contender, f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:200]
