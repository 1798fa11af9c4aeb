"""Fills the table of docs/faiss.md from results/first_stages.json."""

from __future__ import annotations

from page import DOCS, command, result, source, table

PAGE = DOCS / "faiss.md"


def stages() -> str | None:
    values = result("first_stages")
    if values is None:
        return None
    lines = []
    for name, row in values["stages"].items():
        before, after, fused = (row[kind] for kind in ("before", "after", "fused"))
        gains = [
            f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
            for gain in (row["gain"]["after"], row["gain"]["fused"])
        ]
        lines.append([
            name, f"{before['nDCG@10']:.3f}", f"{after['nDCG@10']:.3f}", gains[0], f"{fused['nDCG@10']:.3f}", gains[1],
            f"{before['R@100']:.3f}", *(f"{kind['Judged@10']:.3f}" for kind in (before, after, fused)),
        ])  # fmt: skip
    head = [
        "first stage", "nDCG@10 before", "reranked", "change", "both orders fused", "change", "recall@100",
        "judged@10 before", "reranked", "fused",
    ]  # fmt: skip
    about = (
        f"{values['judged_pairs']:,} pairs judged by {'the' if values['model']['trained'] else 'an untrained'} model"
    )
    return f"{table(head, lines)}\n\n{about} {source(values, 'first_stages')}."


TABLES = (stages,)


if __name__ == "__main__":
    command(PAGE, TABLES)()
