"""Ray's workers write the file of one process, byte for byte, with a worker killed, and with the whole run killed.

make check-scale    # builds .venv-scale, then runs this

On the sample store, in a folder of its own: tiny-llama is pretrained and fine-tuned for a minute, then
`tools/at_scale.py` writes the lists of some test users in one process without Ray; by two workers, one of which gets
kill -9 while it works; and by two workers in a run that is killed as a whole and started again.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import psutil
import pyarrow.parquet as pq

from gloss_utils import finetuning, raw_data, splits, tiny_llama
from gloss_utils.paths import PROJECT_ROOT, file_sha256

TOOL = PROJECT_ROOT / "tools/at_scale.py"
SECONDS = 600  # at most, for anything that is waited for
TRAINING = finetuning.TrainingSettings(
    alpha=32,
    learning_rate=5e-3,
    warmup_steps=5,
    epochs=1,
    batch_size=8,
    gradient_accumulation=1,
    order="by_length",
    evaluations=1,
    user_share=0.25,
    validation_users=16,
)


def make_model(data: Path) -> None:
    """What notebooks 01 and 03 do, in short."""
    prepared = raw_data.prepare("sample", data_dir=data, progress=False)
    recipe = tiny_llama.Recipe(epochs=1)
    tiny_llama.pretrain_base(prepared.catalog["text"], prepared.paths.base_model("tiny-llama"), recipe)
    finetuning.finetune(splits.load_prepared("sample", data), "tiny-llama", TRAINING)


def command(data: Path, users: Path, out: Path, workers: int) -> list[str]:
    given = {"data-dir": data, "users": users, "out": out, "workers": workers, "batch": 16}
    return [sys.executable, str(TOOL), "recommend", *(f"--{name}={value}" for name, value in given.items())]


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    """Wait for a run that must succeed; returns what it printed."""
    output, _ = process.communicate(timeout=SECONDS)
    if process.returncode:
        raise SystemExit(f"{output}\nthe run ended with {process.returncode}")
    return output


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Ray's actors with a loaded model, the oldest first; Ray renames a process to what it runs."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "MapBatches(Worker)" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended meanwhile
            continue
    return sorted(found, key=psutil.Process.create_time)


def wait_for_parts(process: subprocess.Popen, out: Path, count: int) -> int:
    """Wait until some batches are done and some are not."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        done = len(list(out.glob("parts/*.parquet")))
        if done >= count:
            return done
        time.sleep(0.05)
    raise SystemExit("the run ended before a worker could be killed: give more --users")


def kill_one_worker(*arguments) -> str:
    """Run with two workers and kill -9 the first of them once a batch is done; returns what the run printed."""
    process = start(*arguments)
    wait_for_parts(process, arguments[2], 1)
    before = workers_of(process)
    assert len(before) == 2, f"{len(before)} workers, not two"
    before[0].kill()
    print(f"killed worker {before[0].pid}, the other one is {before[1].pid}")
    seen = set()
    while process.poll() is None:
        seen |= {worker.pid for worker in workers_of(process)} - {worker.pid for worker in before}
        if seen:
            break
        time.sleep(0.1)
    print(f"started anew: {sorted(seen) or 'none was needed any more'}")
    return finish(process)


def kill_the_run(*arguments) -> int:
    """Start with two workers, and kill everything after two batches; returns how many were done."""
    process = start(*arguments)
    wait_for_parts(process, arguments[2], 2)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        if member.is_running():
            member.kill()
    psutil.wait_procs(family, timeout=60)
    process.communicate()
    return len(list(arguments[2].glob("parts/*.parquet")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=160)
    parser.add_argument("--folder", help="kept, with the model; without it, a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(options.folder or scratch).resolve()
        data, users = root / "data", root / "users.parquet"
        for run in ("one", "two", "again"):
            shutil.rmtree(root / run, ignore_errors=True)
        if not (data / "sample/models/tiny-llama/run.json").exists():
            make_model(data)
        made = splits.load_prepared("sample", data).splits["test"].data.table
        pq.write_table(made.select(["reviewer_id", "seen_asins"])[: options.users], users)

        began = time.monotonic()
        print(finish(start(data, users, root / "one", 0)).splitlines()[-1])
        print(f"one process: {time.monotonic() - began:.0f} s")
        one = file_sha256(root / "one/lists.parquet")

        began = time.monotonic()
        print(kill_one_worker(data, users, root / "two", 2).splitlines()[-1])
        print(f"two workers, one of them killed: {time.monotonic() - began:.0f} s")
        two = file_sha256(root / "two/lists.parquet")

        done = kill_the_run(data, users, root / "again", 2)
        output = finish(start(data, users, root / "again", 2))
        print(next(line for line in output.splitlines() if line.startswith("going on")))
        again = file_sha256(root / "again/lists.parquet")
    print(f"SHA-256: one process {one[:16]}, a worker killed {two[:16]}, the run killed {again[:16]}")
    if f"going on: {done} of" not in output or not one == two == again:
        raise SystemExit("the files differ, or batches were done twice")
    print("the same file, byte for byte")


if __name__ == "__main__":
    main()
