"""The picture in the README: two lists before and after, as an SVG of the terminal.

    python benchmarks/readme_picture.py

A question with five passages written for it, and a product search of the demo, which novelty warns of. Writes
docs/figures/before_after.svg with what the checkpoint that ships says today.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from darl_rerank import Reranker
from darl_rerank.cli.demo import LISTS
from darl_rerank.cli.table import ranking_table
from darl_rerank.files import atomic_write

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "figures" / "before_after.svg"
WIDTH, SHOWN = 112, 5
QUERY = "how long do cats live"
PASSAGES = [
    "Cats are small carnivores, and how long they have been living with people is debated.",
    "How long do cats sleep? Most cats live indoors and sleep 12 to 16 hours a day.",
    "Dogs live for 10 to 13 years; small breeds live longer than large ones.",
    "Indoor cats live for 12 to 18 years on average, and some reach 20.",
    "Cat owners spend about a thousand dollars a year on food and the vet.",
]


def main() -> None:
    reranker = Reranker.from_pretrained()
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True)
    show(console, reranker, QUERY, PASSAGES)
    job, _ = LISTS[-1].job()
    qid = next(qid for qid, query in job.queries.items() if query == LISTS[-1].shown)
    show(console, reranker, job.queries[qid], [text for _, text in job.candidates[qid]])
    drawn = console.export_svg(title="darl-rerank")
    # No font from elsewhere: the reader's own monospace does.
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL).replace("Fira Code,", "")
    with atomic_write(OUTPUT) as stream:
        stream.write(drawn)


def show(console: Console, reranker: Reranker, query: str, documents: Sequence[Any]) -> None:
    ranking = reranker.rerank(query, documents)[:SHOWN]
    console.print(Text(query, style="bold"))
    console.print(Text("first stage", style="bright_black"))
    for place, text in enumerate(documents[:SHOWN], 1):
        console.print(Text(f"{place}  {' '.join(text.split())}"[: WIDTH - 4], style="bright_black"))
    console.print(Text("reranked", style="bright_black"))
    titles, old = [one.text for one in ranking], [one.index + 1 for one in ranking]
    console.print(ranking_table(ranking, titles, old_ranks=old, width=WIDTH - 2, blocks=True))
    console.print()


if __name__ == "__main__":
    main()
