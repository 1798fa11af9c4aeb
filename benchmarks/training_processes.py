"""The same fine-tuning in one process and in two (accelerate launch): are the losses the same?

python benchmarks/training_processes.py TOPICS CORPUS QRELS
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from provenance import write_result

RECIPE = """
[model]
scale = "ternary"
max_length = 160

[[source]]
name = "pairs"
topics = "{topics}"
corpus = "{corpus}"
qrels = "{qrels}"
max_queries = 40
max_documents = 4

[finetune]
weights = "lora"
layers = 4
batch = 8
micro_batches = 2
max_examples = {examples}

[calibrate]
enabled = false
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("topics", "corpus", "qrels"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--examples", type=int, default=96)
    arguments = parser.parse_args()
    binaries = Path(sys.executable).parent
    losses: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        files = {name: getattr(arguments, name).resolve() for name in ("topics", "corpus", "qrels")}
        recipe.write_text(RECIPE.format(**files, examples=arguments.examples), "utf-8")
        for processes in (1, 2):
            output = Path(folder) / f"model-{processes}"
            command = [str(binaries / "darl-rerank"), "train", "--config", str(recipe), "--device", "cpu"]
            command += ["--output", str(output)]
            if processes > 1:
                launch = ["launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
                launch += ["--dynamo_backend", "no", "--num_processes", str(processes)]
                command = [str(binaries / "accelerate"), *launch, *command]
            else:
                command = [sys.executable, *command]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stage = Path(str(output) + ".work") / "finetune-0"
            assert json.loads((stage / "result.json").read_text("utf-8"))["processes"] == processes
            lines = (stage / "log.jsonl").read_text("utf-8").splitlines()
            losses[processes] = [json.loads(line)["loss"] for line in lines]
    largest = max(abs(a - b) for a, b in zip(losses[1], losses[2], strict=True))
    for step, (one, two) in enumerate(zip(losses[1], losses[2], strict=True), 1):
        print(f"step {step:3d}  one process {one:.6f}  two {two:.6f}")
    print(f"largest difference {largest:.2e} over {len(losses[1])} steps")
    print(write_result("training_processes", {"losses": losses, "largest_difference": largest}))


if __name__ == "__main__":
    main()
