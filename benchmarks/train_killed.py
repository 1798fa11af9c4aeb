"""A whole training on forum questions, killed once in each stage: does it go on, and what comes out?

    python benchmarks/train_killed.py ../shared/data/semeval-cqa OUT

Whole forum categories are the out-of-distribution test set. The set-up is small so that two shared cores do it in a
quarter of an hour: a part of the questions, prompts of at most 192 tokens, the decoder's last 10 layers, a wide band.

OUT is a new folder, or one where this script was ended before it was done: it then goes on, and its history, which it
keeps in OUT/history.json after every event, says so.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from provenance import write_result

HOME = ["Visas and Permits", "Salary and Allowances", "Working in Qatar", "Moving to Qatar", "Opportunities"]
POOL = ["Qatar Living Lounge", "Advice and Help", "Family Life in Qatar", "Socialising", "Doha Shopping"]
DEV = ["Welcome to Qatar", "Sightseeing and Tourist attractions"]
AWAY = ["Politics", "Qatari Culture", "Funnies", "Health and Fitness", "Sports in Qatar", "Computers and Internet",
        "Pets and Animals", "Environment", "Education", "Cars and driving"]  # fmt: skip

SOURCE = """
[[source]]
name = "{name}"
use = "{use}"
topics = "{data}/topics.tsv"
corpus = "{data}/corpus.jsonl.gz"
qrels = "{data}/qrels.txt"
groups_file = "{data}/categories.tsv"
only_groups = {groups}
licence = "SemEval 2016 task 3, research use"
"""
STAGES = """
seed = 1

[model]
base = "smollm2"
scale = "ternary"
max_length = 192
{sources}
[probe]

[select]
budget = {budget}
strategy = "dasa"
band = [50.0, 99.5]
per_query = 10
labels = "pool"

[finetune]
loss = "occ"
weights = "all"
layers = 10
learning_rate = 1e-4
batch = 32
micro_batches = 2
replay = 1.0
save_minutes = 0.3

[interpolate]

[calibrate]
novelty = true
"""


def recipe(data: Path, scale: float, budget: int) -> str:
    """The recipe; `scale` multiplies the number of queries."""

    def source(name: str, use: str, groups: list[str], queries: int, more: str = "") -> str:
        text = SOURCE.format(name=name, use=use, data=data, groups=json.dumps(groups))
        return text + f"max_queries = {max(2, round(queries * scale))}\n{more}"

    held_out = f"dev_queries = {max(2, round(15 * scale))}\n"
    sources = [
        source("home", "train", HOME, 60, "part = [0.0, 0.75]\n" + held_out),
        source("elsewhere", "pool", POOL, 150),
        source("OOD dev", "ood_dev", DEV, 15),
        source("ID test", "test", HOME, 40, "part = [0.75, 1.0]\n"),
        source("OOD test", "ood_test", AWAY, 40),
    ]
    return STAGES.format(sources="".join(sources), budget=budget)


def begun(stage: str, folder: Path) -> bool:
    """Whether a stage is in the middle of its work, with something to lose and something to keep."""
    if stage.startswith("finetune"):
        return any((state / "trainer_state.json").is_file() for state in folder.glob("checkpoint-*"))
    if stage == "merge":
        return len(list(folder.glob("logits-*.npz"))) >= 2
    return any(folder.glob("**/progress.json")) if stage != "start" else folder.is_dir()


def run_killing(command: list[str], work: Path, stages: list[str], log: Path) -> list[dict[str, object]]:
    """Run the command again and again; in each of `stages` it is killed once, with SIGKILL."""
    record = log.with_name("history.json")
    history: list[dict[str, object]] = json.loads(record.read_text("utf-8")) if record.is_file() else []

    def happened(**event: object) -> None:
        history.append(event)
        record.write_text(json.dumps(history, indent=1), "utf-8")
        print(" ".join(f"{key} {value}" for key, value in event.items()), flush=True)

    if work.exists():
        happened(script_started_again=True)
    done = {entry.get("killed_in") for entry in history}
    left = [stage for stage in stages if stage not in done]
    with log.open("ab") as stream:
        while True:
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=stream, stderr=stream)
            try:
                killed = wait(process, work, lambda stage: stage in left)
            finally:
                # If this script is ended itself, no training goes on behind its back.
                process.kill()
                process.wait()
            seconds = round(time.monotonic() - started, 1)
            if killed is None:
                happened(ended=process.returncode, seconds=seconds)
                if process.returncode:
                    raise SystemExit(f"the training failed: see {log}")
                return history
            left.remove(killed)
            happened(killed_in=killed, seconds=seconds)


def wait(process: subprocess.Popen[bytes], work: Path, wanted: Callable[[str], bool]) -> str | None:
    """Wait until the process is in a wanted stage, kill it there and return the stage; None if it ends before."""
    while process.poll() is None:
        for folder in sorted(work.glob("*/")):
            stage = folder.name
            if wanted(stage) and not (folder / "result.json").is_file() and begun(stage, folder):
                process.send_signal(signal.SIGKILL)
                process.wait()
                return stage
        time.sleep(0.05)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the numbers of queries")
    parser.add_argument("--budget", type=int, default=500)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if (out / "model").exists():
        parser.error(f"{out} holds a finished training; name a new folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    out.mkdir(parents=True, exist_ok=True)
    text = recipe(arguments.data.resolve(), arguments.scale, arguments.budget)
    (out / "recipe.toml").write_text(text, "utf-8")
    model, work = out / "model", out / "model.work"
    command = [sys.executable, "-m", "darl_rerank.cli", "train", "--config", str(out / "recipe.toml")]
    command += ["--output", str(model), "--device", "cpu"]
    stages = ["start", "probe", "select", "finetune-1", "merge", "calibrate", "evaluate"]
    history = run_killing(command, work, stages, out / "train.log")
    results = {path.parent.name: json.loads(path.read_text("utf-8")) for path in work.glob("*/result.json")}
    results["select"].pop("rows")
    lines = [json.loads(line) for line in (work / "finetune-1" / "log.jsonl").read_text("utf-8").splitlines()]
    report = (work / "evaluate" / "report.html").read_text("utf-8")
    path = write_result("train_killed", {
        "setting": {"scale": arguments.scale, "budget": arguments.budget, "recipe": text.replace(
            str(arguments.data.resolve()), arguments.data.name)},
        "history": history,
        "stages": results,
        "report_headings": re.findall(r"<h[23][^>]*>(.*?)</h[23]>", report),
        "report_plots": report.count("<svg") + report.count("<img"),
        "finetune_steps": [line["step"] for line in lines],
        "finetune_loss": [line["loss"] for line in lines],
    })  # fmt: skip
    print((model / "README.md").read_text("utf-8"))
    print(path)
    if missed := set(stages) - {event.get("killed_in") for event in history}:
        raise SystemExit(f"a stage was over before it could be killed: {', '.join(sorted(missed))}")


if __name__ == "__main__":
    main()
