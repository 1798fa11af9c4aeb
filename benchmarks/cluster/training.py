"""The same fine-tuning in one process and on two hosts (accelerate launch): are the losses the same?

    python benchmarks/cluster/training.py MODEL [--steps 20]

The hosts are network namespaces with addresses of their own (needs root), which share a disk. A small MODEL keeps it
short. Writes results/training_hosts.json.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from nodes import Nodes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from provenance import write_result

PORT = 29_511
WORDS = ("laptop", "notebook", "garden", "hose", "printer", "toner", "battery", "quick", "fox", "house", "rain")
RECIPE = """
[model]
checkpoint = "{model}"
[[source]]
name = "home"
pairs = "pairs.jsonl"
dev_queries = 4
[finetune]
weights = "lora"
batch = 8
micro_batches = 2
max_examples = {examples}
[calibrate]
enabled = false
"""


def write_recipe(folder: Path, model: Path, steps: int) -> Path:
    """A recipe on made-up pairs whose grade is the number of words that query and document share."""
    generator = random.Random(0)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(60):
            query = generator.sample(WORDS, 2)
            for grade in range(3):
                words = [*query[:grade], *generator.sample(WORDS, 3)]
                pair = {"query": f"{' '.join(query)} {number}", "document": " ".join(words), "grade": grade}
                stream.write(json.dumps(pair) + "\n")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model, examples=8 * steps), "utf-8")
    return recipe


def losses(output: Path, processes: int) -> list[float]:
    stage = Path(f"{output}.work") / "finetune-0"
    found = json.loads((stage / "result.json").read_text("utf-8"))["processes"]
    if found != processes:
        raise RuntimeError(f"{found} processes, expected {processes}")
    return [json.loads(line)["loss"] for line in (stage / "log.jsonl").read_text("utf-8").splitlines()]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--steps", default=20, show_default=True)
def main(model: Path, steps: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    train = ["-m", "darl_rerank.cli", "train", "--device", "cpu"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train += ["--config", str(write_recipe(folder, model.absolute(), steps)), "--output"]
        subprocess.run([sys.executable, *train, str(folder / "one")], check=True, capture_output=True)
        one = losses(folder / "one", 1)
        nodes = Nodes({"HF_HUB_OFFLINE": "1"})
        try:
            for host in (0, 1):
                nodes.add_host(host)
            running = []
            for host in (0, 1):
                launch = [
                    "-m",
                    "accelerate.commands.launch",
                    "--multi_gpu",
                    "--num_machines",
                    "2",
                    "--num_processes",
                    "2",
                ]
                launch += [
                    "--machine_rank",
                    str(host),
                    "--main_process_ip",
                    nodes.ip(0),
                    "--main_process_port",
                    str(PORT),
                ]
                launch += ["--rdzv_backend", "static", "--mixed_precision", "no", "--dynamo_backend", "no"]
                # torch's own choice is the address of the host's name, which is no interface of a namespace.
                environment = ["env", f"GLOO_SOCKET_IFNAME={nodes.interface(host)}"]
                words = [*environment, sys.executable, *launch, *train, str(folder / "two")]
                running.append(nodes.popen(host, words))
            for process in running:
                _, said = process.communicate(timeout=600)
                if process.returncode:
                    raise RuntimeError(said[-3000:])
        finally:
            nodes.close()
        two = losses(folder / "two", 2)
    largest = max(abs(a - b) for a, b in zip(one, two, strict=True))
    click.echo(f"largest difference of the loss in {len(one)} steps: {largest:.2e}")
    write_result("training_hosts", {"hosts": 2, "losses": {"one process": one, "two hosts": two},
                                    "largest_difference": largest})  # fmt: skip


if __name__ == "__main__":
    main()
