"""Lists of documents for every query, with soft labels from what people said and from an encoder's view.

    python benchmarks/bundled/labels.py TEXTS JUDGED ENCODER OUTPUT

TEXTS is collect.py's folder; JUDGED the folder of trec-dl-2021, people's grades of web passages; ENCODER a folder with
all-mpnet-base-v2 (Apache-2.0), the best of the teachers tried (docs/checkpoint.md). Its nearest documents are
a query's list, and the cosine c of a pair, with what people said of it, makes a soft label by Bayes' rule:

    P(grade | c, said)  ∝  P(grade | c) · P(said | grade)

P(grade | c) is a proportional-odds model (McCullagh 1980) fitted on JUDGED; P(said | grade) is `LIKELIHOOD`, by hand.
OUTPUT gets lists.npz: for each pair the query's and the text's number and the label; and labels.json.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from json_lines import json_lines
from numpy.typing import NDArray
from scipy.optimize import minimize

SEED = 1
GRADES = 4
# P(said | grade) up to a factor, for irrelevant, related, relevant, perfect.
LIKELIHOOD = {
    "chosen": (0.01, 0.10, 0.60, 1.00),
    "partly": (0.05, 1.00, 0.60, 0.20),
    "in what was chosen": (0.30, 0.80, 1.00, 1.00),
    "passed over": (1.00, 0.70, 0.15, 0.05),
    "unseen": (1.00, 0.90, 0.40, 0.25),
    "nobody asked": (1.00, 1.00, 1.00, 1.00),
    # What a title has of a product search's words: all; what is asked for only behind "for"; what it is; the rest.
    "all words": (0.03, 0.20, 1.00, 1.00),
    "accessory": (1.00, 0.60, 0.08, 0.02),
    "right type": (0.50, 1.00, 0.50, 0.10),
    "wrong type": (1.00, 0.45, 0.06, 0.01),
    "no word": (1.00, 0.40, 0.08, 0.02),
}
# Documents of a list: how many are drawn, and down to which place in the encoder's order. Then at random, and judged.
PLACES = ((6, 8), (6, 40), (4, 250))
RANDOM, JUDGED = 2, 4
SHORT = {"films": 0.5, "products": 0.6}
# Of a step of the encoder, padding included: more are slower on a CPU.
TOKENS = {"cuda": 32768, "cpu": 512}


@click.command(help=__doc__)
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("judged", type=click.Path(exists=True, path_type=Path))
@click.argument("encoder", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--queries", type=int, help="Of JUDGED at most so many, for a trial.")
def main(texts: Path, judged: Path, encoder: Path, output: Path, queries: int | None) -> None:
    from darl_rerank.trec.corpora import load_documents
    from darl_rerank.trec.qrels import read_qrels
    from darl_rerank.trec.topics import read_topics

    encode = Encoder(encoder)
    topics, qrels = read_topics(judged / "topics.tsv"), dict(islice(read_qrels(judged / "qrels.txt").items(), queries))
    found = load_documents(judged / "corpus.jsonl.gz", {d for graded in qrels.values() for d in graded})
    rows = [(q, d, g) for q, graded in qrels.items() for d, g in graded.items() if q in topics and d in found]
    cosine = (encode([topics[q] for q, _, _ in rows]) * encode([found[d].full_text for _, d, _ in rows])).sum(1)
    prior, nll = fit_prior(cosine.cpu().double().numpy(), np.array([g for _, _, g in rows]))
    counts = {"prior": prior.tolist(), "judged pairs": len(rows), "nll": nll, "encoder": encoder.name, "seed": SEED}
    arrays: dict[str, NDArray[Any]] = {}
    for path in sorted(texts.glob("*.texts.jsonl.gz")):
        name = path.name.split(".")[0]
        every = list(json_lines(path.with_name(f"{name}.queries.jsonl.gz")))
        lists = listed(name, every, list(json_lines(path)), encode, prior)
        for key, values in zip(("query", "text", "label"), lists, strict=True):
            arrays[f"{name}.{key}"] = values
        shares = lists[2].mean(axis=0).round(3).tolist()
        counts[name] = {"queries": len(every), "pairs": len(lists[0]), "mean label": shares}
        print(name, counts[name], flush=True)
    output.mkdir(parents=True, exist_ok=True)
    np.savez(output / "lists.npz", **arrays)
    (output / "labels.json").write_text(json.dumps(counts, indent=1) + "\n", "utf-8")


class Encoder:
    """all-mpnet-base-v2: the mean of the last states, of unit length; float16 on a GPU, bfloat16 on a CPU."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoModel

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if self._device.type == "cuda" else torch.bfloat16
        self._model = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval().to(self._device)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(384)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors, shape (n, d), on the device, float32. A text that stands there twice is run once."""
        tokens, places = TOKENS[self._device.type], {text: place for place, text in enumerate(dict.fromkeys(texts))}
        ids = [e.ids for e in self._tokenizer.encode_batch_fast(list(places))]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        result: torch.Tensor | None = None
        start = 0
        while start < len(order):
            longest = len(ids[order[start]])
            part = order[start : start + max(1, tokens // longest)]
            start += len(part)
            padded = torch.ones(len(part), longest, dtype=torch.long)
            mask = torch.zeros(len(part), longest)
            for row, place in enumerate(part):
                padded[row, : len(ids[place])] = torch.tensor(ids[place])
                mask[row, : len(ids[place])] = 1
            mask = mask.to(self._device)
            states = self._model(padded.to(self._device), attention_mask=mask.long()).last_hidden_state.float()
            mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            unit = torch.nn.functional.normalize(mean, dim=1)
            if result is None:
                result = torch.zeros(len(ids), unit.shape[1], device=self._device)
            result[part] = unit
        assert result is not None
        return result[[places[text] for text in texts]]


def listed(
    name: str, queries: Sequence[dict[str, Any]], texts: Sequence[str], encode: Encoder, prior: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Query number, text number and label, shape (n, K), of every pair; a query's pairs stand together."""
    rng = random.Random(f"{SEED}/{name}")
    vectors, asked = encode(texts), encode([query["query"] for query in queries])
    pairs: list[tuple[int, int, str]] = []
    most = min(PLACES[-1][1], len(texts) - 1)
    for start in range(0, len(queries), 1024):
        nearest = (asked[start : start + 1024] @ vectors.T).topk(most).indices.cpu().numpy()
        for number, order in enumerate(nearest, start):
            pairs += [(number, place, said) for place, said in draw(name, queries[number], texts, order, rng)]
    query, text = (np.array([pair[i] for pair in pairs], np.int32) for i in (0, 1))
    cosine = np.concatenate([
        (asked[query[i : i + 65536]] * vectors[text[i : i + 65536]]).sum(1).cpu().double().numpy()
        for i in range(0, len(pairs), 65536)
    ])  # fmt: skip
    joint = grade_prior(prior, cosine) * np.array([LIKELIHOOD[said] for _, _, said in pairs])
    return query, text, (joint / joint.sum(axis=1, keepdims=True)).astype(np.float32)


def draw(
    name: str, query: dict[str, Any], texts: Sequence[str], order: NDArray[np.int64], rng: random.Random
) -> Iterator[tuple[int, str]]:
    said = {int(place): word for place, word in query["said"].items()}
    if query.get("fixed"):
        yield from said.items()
        return
    other = "unseen" if query.get("asked", True) else "nobody asked"
    taken = rng.sample(sorted(said), min(JUDGED, len(said)))
    before = 0
    for count, until in PLACES:
        band = order[before:until].tolist()
        taken += rng.sample(band, min(round(count * SHORT.get(name, 1)), len(band)))
        before = until
    taken += [rng.randrange(len(texts)) for _ in range(RANDOM)]
    seen: set[str] = {""}
    for place in dict.fromkeys(taken):
        # The same passage may stand in a corpus twice: a copy of a judged one is not unseen.
        if texts[place] not in seen:
            seen.add(texts[place])
            yield place, said.get(place, other)


def fit_prior(cosine: NDArray[np.float64], grade: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Slope, then rising cut points, of P(grade <= j | c) = sigmoid(cut_j - slope · c), and its NLL."""

    def unpack(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([x[:2], x[1] + np.exp(x[2:]).cumsum()])

    def loss(x: NDArray[np.float64]) -> float:
        return float(-np.log(grade_prior(unpack(x), cosine)[np.arange(len(grade)), grade]).mean())

    found = minimize(loss, np.array([1.0, 0.0, 0.3, 0.3]), method="L-BFGS-B")
    return unpack(found.x), float(found.fun)


def grade_prior(prior: NDArray[np.float64], cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(grade | c), shape (n, K)."""
    below = 1 / (1 + np.exp(prior[0] * cosine[:, None] - prior[1:][None]))
    edges = np.concatenate([np.zeros((len(cosine), 1)), below, np.ones((len(cosine), 1))], axis=1)
    return np.clip(np.diff(edges, axis=1), 1e-9, None)


if __name__ == "__main__":
    main()
