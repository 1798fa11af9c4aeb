"""Lists of a random sample of queries: labels.py for a machine without a GPU.

    python benchmarks/bundled/sample.py TEXTS LABELS ENCODER OUTPUT --queries 600

As labels.py, but all-mpnet-base-v2 (ENCODER) sees only the texts of the lists, not every text of a collection. Which
texts are near a query is therefore asked of TF-IDF, and labels are of ENCODER's cosine as ever. LABELS is a
labels.json, whose prior is taken. Vectors are kept in OUTPUT block by block, named by a digest of their texts: the same
command goes on where it was stopped, and one with more --queries from there. OUTPUT gets lists.npz and labels.json.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import click
import numpy as np
from json_lines import json_lines
from labels import LIKELIHOOD, PLACES, SEED, Encoder, draw, grade_prior
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

BLOCK = 256


@click.command(help=__doc__)
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("labels", type=click.Path(exists=True, path_type=Path))
@click.argument("encoder", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--queries", default=600, show_default=True, help="Of all collections together, in their proportion.")
def main(texts: Path, labels: Path, encoder: Path, output: Path, queries: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    told = json.loads(labels.read_text("utf-8"))
    paths = sorted(texts.glob("*.texts.jsonl.gz"))
    names = [path.name.split(".")[0] for path in paths]
    asked = {name: list(json_lines(texts / f"{name}.queries.jsonl.gz")) for name in names}
    share = queries / sum(map(len, asked.values()))
    corpora = {name: list(json_lines(path)) for name, path in zip(names, paths, strict=True)}
    taken: dict[str, list[int]] = {}
    for name, all_ in asked.items():
        order = list(range(len(all_)))
        random.Random(f"{SEED}/{name}").shuffle(order)
        taken[name] = order[: round(share * len(all_))]
    questions = {name: [asked[name][number]["query"] for number in taken[name]] for name in names}
    pairs: dict[str, list[tuple[int, int, str]]] = {}
    for name in names:
        rng = random.Random(f"{SEED}/{name}")
        words = TfidfVectorizer(sublinear_tf=True, stop_words="english", dtype=np.float32)
        vectors = words.fit_transform(corpora[name])
        most = min(PLACES[-1][1], len(corpora[name]) - 1)
        pairs[name] = []
        for number, vector in zip(taken[name], words.transform(questions[name]), strict=True):
            nearest = np.argsort(-(vectors @ vector.T).toarray()[:, 0], kind="stable")[:most]
            drawn = draw(name, asked[name][number], corpora[name], nearest, rng)
            pairs[name] += [(number, place, said) for place, said in drawn]
    large = Encoder(encoder)
    prior = np.array(told["prior"])
    arrays: dict[str, NDArray[Any]] = {}
    counts: dict[str, Any] = {"prior": told["prior"], "encoder": encoder.name, "lists drawn by": "TF-IDF"}
    for name in names:
        query, text = (np.array([pair[i] for pair in pairs[name]], np.int32) for i in (0, 1))
        used = {place: row for row, place in enumerate(dict.fromkeys(text.tolist()))}
        asking = {number: row for row, number in enumerate(taken[name])}
        found = kept(large, [corpora[name][place] for place in used], output / "vectors" / name)
        own = kept(large, questions[name], output / "vectors" / f"{name}.queries")
        rows, of = ([row[number] for number in numbers.tolist()] for row, numbers in ((used, text), (asking, query)))
        cosine = (found[rows] * own[of]).sum(1)
        joint = grade_prior(prior, cosine.astype(np.float64))
        joint = joint * np.array([LIKELIHOOD[said] for _, _, said in pairs[name]])
        label = (joint / joint.sum(axis=1, keepdims=True)).astype(np.float32)
        arrays |= {f"{name}.query": query, f"{name}.text": text, f"{name}.label": label}
        counts[name] = {
            "queries": len(taken[name]), "of queries": len(asked[name]), "pairs": len(query), "texts": len(used),
            "mean label": label.mean(axis=0).round(3).tolist(),
        }  # fmt: skip
        click.echo(f"{name}: {counts[name]}")
    np.savez(output / "lists.npz", **arrays)
    (output / "labels.json").write_text(json.dumps(counts, indent=1) + "\n", "utf-8")


def kept(encode: Encoder, texts: list[str], folder: Path) -> NDArray[np.float32]:
    """Unit vectors, shape (n, d); blocks of the same texts that stand in `folder` are not computed again."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for start in tqdm(range(0, len(texts), BLOCK), desc=f"{folder.parent.name}/{folder.name}", unit="block"):
        block = texts[start : start + BLOCK]
        path = folder / f"{hashlib.sha256(json.dumps(block).encode()).hexdigest()[:24]}.npy"
        if not path.is_file():
            whole = path.with_suffix(".part.npy")
            np.save(whole, encode(block).cpu().numpy())
            whole.replace(path)
        found.append(np.load(path, allow_pickle=False))
    return np.concatenate(found)


if __name__ == "__main__":
    main()
