"""Where an int8 export's time goes: ONNX Runtime's own profile of a micro-batch, by operator.

    python benchmarks/int8_profile.py EXPORT [--rows 14] [--tokens 72] [--prefix 33]

Token ids are random; time depends on how many there are. Writes results/int8_profile.json.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import click
import numpy as np
import onnxruntime
from provenance import write_result

from darl_rerank import Checkpoint
from darl_rerank.engines.providers import thread_count
from darl_rerank.model.checkpoint import PREFIX_GRAPH

REPEATS = 5


@click.command(help=__doc__)
@click.argument("export", type=click.Path(exists=True, path_type=Path))
@click.option("--rows", default=14, show_default=True)
@click.option("--tokens", default=72, show_default=True, help="Of each row behind the prefix.")
@click.option("--prefix", default=33, show_default=True, help="Tokens of the prefix.")
def main(export: Path, rows: int, tokens: int, prefix: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        options.intra_op_num_threads, options.enable_mem_pattern = thread_count(), False
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(export / PREFIX_GRAPH), options, providers=["CPUExecutionProvider"])
        shapes = {value.name: value.shape for value in session.get_inputs()}
        layers, two, heads, _, size = shapes["prefix_keys_values"]
        rng = np.random.default_rng(0)
        ids = rng.integers(3, 30_000, (rows, tokens))
        inputs = {
            "input_ids": ids, "attention_mask": np.ones_like(ids),
            "prefix_keys_values": rng.normal(size=(layers, two, heads, prefix, size)).astype(np.float32),
            "prefix_own_sum": np.zeros(shapes["prefix_own_sum"], np.float32),
        }  # fmt: skip
        for _ in range(REPEATS):
            session.run(["logits", "features"], inputs)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    shares = {name: taken / spent.total() for name, taken in spent.most_common()}
    for name, share in list(shares.items())[:15]:
        click.echo(f"{name:24} {share:6.1%}")
    record = Checkpoint.load(export).export
    assert record is not None
    write_result(
        "int8_profile",
        {"model": export.name, "finer products": len(record.finer_products), "rows": rows, "tokens": tokens,
         "prefix": prefix, "shares": shares},
    )  # fmt: skip


if __name__ == "__main__":
    main()
