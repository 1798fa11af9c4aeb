"""What a cluster job says when a node is not like the others: one error, and nothing written.

    python benchmarks/cluster/faults.py MODEL

Of two nodes in network namespaces (needs root), the second sees other files than the first: another checkpoint, another
version of the package, no corpus. Prints what the command says; writes results/ray_faults.json.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

import click
from made import make_job
from nodes import Nodes, cluster

import darl_rerank
from darl_rerank import Reranker
from darl_rerank.model.calibration import Calibration

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from provenance import write_result  # noqa: E402


def job(nodes: Nodes, folder: Path, address: str, *more: str) -> tuple[int, str, list[str]]:
    """Exit code, what is said, and what is left in the folder of the outputs."""
    out = folder / "out"
    out.mkdir()
    files = folder / "job"
    words = ["-m", "darl_rerank.cli", "--", "rerank", files / "run.trec", files / "topics.tsv", out / "out.trec"]
    words += ["--corpus", files / "corpus", "--model", folder / "model", "--precision", "float32", "--ray", address]
    process = nodes.popen(0, [sys.executable, *(str(word) for word in words if word != "--"), *more])
    _, said = process.communicate(timeout=300)
    left = sorted(path.name for path in out.iterdir())
    shutil.rmtree(out)
    return process.returncode, said.replace(f"{folder}/", "").strip(), left


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
def main(model: Path) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_job(folder / "job", queries=20, depth=10, documents=1000)
        shutil.copytree(model, folder / "model")
        checkpoint = Reranker.from_pretrained(model, precision="float32", device="cpu").checkpoint
        checkpoint.replace(calibration=Calibration(temperature=1.5)).save(folder / "other")
        source = Path(darl_rerank.__file__)
        text = re.sub(r'__version__ = ".*"', '__version__ = "0.0.1"', source.read_text("utf-8"))
        (folder / "older.py").write_text(text, "utf-8")
        (folder / "empty").mkdir()
        faults = {
            "another checkpoint on a node": [(folder / "other", folder / "model")],
            "another version of the package on a node": [(folder / "older.py", source)],
            "a node that does not see the corpus": [(folder / "empty", folder / "job")],
        }
        for fault, mounts in faults.items():
            with cluster([1]) as nodes:
                nodes.start(2, 1, mounts)
                rows.append((fault, *job(nodes, folder, nodes.address)))
        with cluster([1]) as nodes:
            rows.append(("no cluster at the address", *job(nodes, folder, f"{nodes.ip(1)}:6380")))
            rows.append(("more than any node has", *job(nodes, folder, nodes.address, "--cpus-per-worker", "8")))
            rows.append(("nothing wrong", *job(nodes, folder, nodes.address)))
    for fault, code, said, left in rows:
        click.echo(f"{fault}: exit code {code}, left {left}\n    {said}")
    keys = ("fault", "exit_code", "said", "left")
    write_result("ray_faults", {"faults": [dict(zip(keys, row, strict=True)) for row in rows]})


if __name__ == "__main__":
    main()
