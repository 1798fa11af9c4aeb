"""Pairs of web questions with passages that are about what is asked and mostly don't answer it.

label.py's documents are easily told apart: of some thousand articles hardly two are about one thing, while all of a
first stage's first hundred of millions may be. Here it is passages of articles, those nearest to the question, and the
sentences of the section that the answer is in. Labels are label.py's, and so are the model of P(grade | cosine) and
what people's choice is taken to say; a passage of a longer article that was chosen may have the answer or not.

    python benchmarks/bundled/near.py first.toml second.toml --data data --pairs pairs_mpnet --encoder ENCODER

The questions are such as the recipes trained on; none that one of them held out. PAIRS is label.py's with ENCODER, and
gets natural-questions-near.jsonl and selqa-near.jsonl; with --more natural-questions-near-more.jsonl and
selqa-near-more.jsonl, of questions that those haven't.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from label import WORDS, Encoder, by_bayes, summary, write

from darl_rerank.training.data.sources import load_source
from darl_rerank.training.recipe.read import read_recipe
from darl_rerank.trec.corpora import read_corpus
from darl_rerank.trec.qrels import read_qrels

ARTICLES, SENTENCES = "natural-questions", "selqa"
# Whose articles are cut in passages: what is asked for in one may be told of in the other.
CUT = (ARTICLES, "wiki-qa-mix")
QUESTIONS = {ARTICLES: 1900, SENTENCES: 500}
MORE = {ARTICLES: 2600, SENTENCES: 700}
# Passages of an article at most; the rest of a long list of episodes is like its beginning. A shorter rest than so many
# words goes with the passage before.
MOST, SHORTEST = 4, 24
# Passages a question: of the articles that were chosen, of the nearest, of the next to these, by all-MiniLM-L6-v2.
CHOSEN, NEAREST, NEXT = 2, (2, 6), (2, 30)
PASSED_OVER = 4


@click.command(help=__doc__)
@click.argument("recipes", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--pairs", type=click.Path(path_type=Path), required=True)
@click.option("--encoder", required=True, help="As label.py's.")
@click.option("--more", is_flag=True, help="Of further questions.")
@click.option("--seed", default=1, show_default=True)
def main(recipes: tuple[Path, ...], data: Path, pairs: Path, encoder: str, more: bool, seed: int) -> None:
    known = json.loads((pairs / "labels.json").read_text("utf-8"))
    if known["encoder"] != Path(encoder).name:
        raise click.UsageError(f"{pairs} has labels of {known['encoder']}, expected {Path(encoder).name}")
    prior, judge = np.array(known["prior"]["cosine"]), Encoder(encoder)
    for name, rows_of in ((ARTICLES, near_passages), (SENTENCES, sections)):
        first = pairs / f"{name}-near.jsonl"
        path = first.with_stem(f"{first.stem}-more") if more else first
        if not path.is_file():
            rng = random.Random(f"{seed}/{path.stem}")
            asked = trained_on(recipes, name)
            if more:
                had = {json.loads(line)["qid"] for line in first.read_text("utf-8").splitlines()}
                asked = {qid: query for qid, query in asked.items() if qid not in had}
            most = (MORE if more else QUESTIONS)[name]
            asked = {qid: asked[qid] for qid in rng.sample(sorted(asked), min(most, len(asked)))}
            rows = list(rows_of(data, asked, rng))
            write(path, rows, by_bayes(prior, judge, rows))
        summary(path)


def trained_on(recipes: tuple[Path, ...], name: str) -> dict[str, str]:
    """The questions of a collection that the recipes' sources of its name, or beginning with it, trained on."""
    trained, held_out = {}, set()
    for path in recipes:
        recipe = read_recipe(path)
        for source in recipe.sources:
            if source.use == "train" and source.name.startswith(name):
                loaded = load_source(source, recipe.grades, seed=recipe.seed)
                trained |= {pair.qid: pair.query for pair in loaded.train}
                held_out |= {pair.qid for pair in loaded.dev}
    return {qid: query for qid, query in trained.items() if qid not in held_out}


def near_passages(data: Path, asked: Mapping[str, str], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Passages of the chosen articles and of others."""
    passages: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for name in CUT:
        for document in read_corpus(data / name / "corpus.jsonl.gz"):
            for number, text in enumerate(cut(document.text)):
                if text:
                    passages[f"{document.docid}#{number}"] = text
                    parts.setdefault(document.docid, []).append(f"{document.docid}#{number}")
    qrels = read_qrels(next((data / ARTICLES).glob("qrels.txt*")))
    miner, ids = Encoder("minilm"), list(passages)
    vectors, questions = miner([passages[i] for i in ids], "document"), miner(list(asked.values()), "query")
    for (qid, query), vector in zip(asked.items(), questions, strict=True):
        chosen = [part for docid, grade in qrels[qid].items() if grade for part in parts.get(docid, ())]
        label = "chosen" if len(chosen) == 1 else "in what was chosen"
        taken = dict.fromkeys(rng.sample(chosen, min(CHOSEN, len(chosen))), label)
        texts = {passages[part] for part in chosen}
        hits = []
        for place in np.argsort(-(vectors @ vector))[: 2 * NEXT[1]]:
            # The same passage may stand in a corpus twice.
            if passages[ids[place]] not in texts:
                texts.add(passages[ids[place]])
                hits.append(ids[place])
        nearest, following = hits[: NEAREST[1]], hits[NEAREST[1] : NEXT[1]]
        taken |= dict.fromkeys([*rng.sample(nearest, NEAREST[0]), *rng.sample(following, NEXT[0])], "unseen")
        for docid, said in taken.items():
            yield {"qid": qid, "docid": docid, "query": query, "document": passages[docid], "label": said}


def cut(text: str) -> Iterator[str]:
    """Passages of `WORDS` words."""
    words = text.split()
    starts = list(range(0, max(len(words) - SHORTEST, 1), WORDS))[:MOST]
    for start in starts:
        end = start + WORDS if len(words) - start - WORDS >= SHORTEST else len(words)
        yield " ".join(words[start:end])


def sections(data: Path, asked: Mapping[str, str], rng: random.Random) -> Iterator[dict[str, Any]]:
    """A sentence that answers and others of its section."""
    qrels = read_qrels(next((data / SENTENCES).glob("qrels.txt*")))
    texts = {document.docid: document.text for document in read_corpus(data / SENTENCES / "corpus.jsonl.gz")}
    for qid, query in asked.items():
        for grade, label, most in ((1, "chosen", 1), (0, "passed over", PASSED_OVER)):
            having = sorted(d for d, found in qrels[qid].items() if found == grade and texts.get(d, "").strip())
            for docid in rng.sample(having, min(most, len(having))):
                yield {"qid": qid, "docid": docid, "query": query, "document": texts[docid], "label": label}


if __name__ == "__main__":
    main()
