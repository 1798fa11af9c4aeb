"""Fills the tables of docs/early-exit.md from results/early_exit.json, exit_tokens.json and prefill_layers.json.

python benchmarks/early_exit_tables.py [--check]
"""

from __future__ import annotations

from page import DOCS, command, percent, result, source, table

PAGE = DOCS / "early-exit.md"


def saved() -> str | None:
    values = result("early_exit")
    if values is None:
        return None
    lines = [
        [
            name, row["queries"], percent(row["left"]), f"{row['relevant that left']} of {row['relevant']}",
            percent(row["share of layers"]),
            f"{row['processor seconds a query']:.1f} ({row['processor seconds a query, whole']:.1f})",
            f"{row['ndcg@10 with exits']:.3f} ({row['ndcg@10 whole']:.3f})",
        ]
        for name, row in values["rows"].items()
    ]  # fmt: skip
    head = [
        "", "queries", "left", "relevant documents that left", "layers run", "processor s a query (without exits)",
        "nDCG@10 (without exits)",
    ]  # fmt: skip
    about = f"{values['model']}, {values['engine']}, BM25's first documents. {source(values, 'early_exit')}"
    return f"{table(head, lines)}\n\n{about}"


def tokens() -> str | None:
    values = result("exit_tokens")
    if values is None:
        return None
    on = {"queries": "", "no web": ", no web passages", "collections": ", other collections"}
    heads = sorted(values["heads"], key=lambda each: -each["layer"])
    rows = [("18, as it ships", values["exit behind 18"])] + [
        (f"{each['layer']}, {each['head']}{on[each['trained on']]}", each["rows"]) for each in heads
    ]
    names = list(values["exit behind 18"])
    lines = [
        [name, *(f"{row[of]['ndcg@10']:.2f}: {percent(row[of]['own']['left'])} ({percent(row[of]['common']['left'])})"
                 for of in names)]
        for name, row in rows
    ]  # fmt: skip
    whole = (f"{name} {row['ndcg@10 whole']:.2f} ({row['queries']})" for name, row in values["exit behind 18"].items())
    about = f"The whole model's nDCG@10 (queries): {', '.join(whole)}. {source(values, 'exit_tokens')}"
    return f"{table(['layer, head', *names], lines)}\n\n{about}"


def prefilled() -> str | None:
    values = result("prefill_layers")
    if values is None:
        return None
    rows = values["rows"]
    lines = []
    for name in next(iter(rows.values()))["models"]:
        each = [row["models"][name] for row in rows.values()]
        cells = [f"{one['ndcg@10']:.3f}, r {one['correlation']:.2f}" for one in each]
        whole = (
            f"all {values['last layer']}" if name == "whole" else name.removesuffix(" layers").replace(" layers,", ",")
        )
        lines.append([whole, *cells, f"{each[0]['time']:.2f}"])
    heads = [
        f"{name} ({row['queries']} queries), nDCG@10; first stage {row['first stage']:.3f}"
        for name, row in rows.items()
    ]
    taught = "; ".join(
        f"{facts['layers']}: {facts['pairs']:,} pairs of {facts['queries']} queries in {facts['seconds'] / 60:.1f} min"
        for facts in values["taught"].values()
    )
    about = f"{values['model']}, {values['engine']}, BM25's first {values['depth']}; time on {next(iter(rows))}. "
    rows_of = table(["layers of all tokens", *heads, "time"], lines)
    return f"{rows_of}\n\n{about}Taught: {taught}. {source(values, 'prefill_layers')}"


TABLES = (saved, tokens, prefilled)


if __name__ == "__main__":
    command(PAGE, TABLES)()
