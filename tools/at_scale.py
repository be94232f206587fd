"""Millions of users: texts and ranked items by several workers, and splits of more data than fits in memory.

    python tools/at_scale.py split --dataset sample --out runs/scale
    python tools/at_scale.py recommend --users runs/scale/test.parquet --out runs/scale/lists --workers 2

`split` needs only two files in the dataset's folder: `interactions.parquet` (reviewer_id, asin, timestamp in seconds;
sorted by user, then by time) and `catalog.parquet` (asin, title, text). It writes the three splits, and
`histories.parquet` with item numbers (`read_histories`), from which co-occurrence and transitions are counted.

`recommend` reads users from Parquet, sorted by `reviewer_id`, with a history of asins (`seen_asins`) or a prompt
(`ptext`), and writes Parquet, sorted as well. The users are cut into batches first, once and for all: what a batch
gives does not depend on who works on it, when, or how often it was begun. A finished batch is a file of its own, so
a run that was cut off goes on with the batches that are missing.

Workers are Ray's: each loads the model once, and one that dies is started anew. With --workers 0 the batches are done
one after the other in this process, without Ray; on machines of one kind the file is the same, byte for byte.
Ray is in requirements-scale.txt. Several machines: set RAY_ADDRESS, with data and output on a disk that all see.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
if str(PROJECT_ROOT) not in sys.path:  # a script is started with its own folder there
    sys.path.insert(0, str(PROJECT_ROOT))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from gloss_utils import prompts, splits  # noqa: E402
from gloss_utils.paths import check_choice, check_number, file_sha256, find_dataset, read_json, show, write_atomically  # noqa: E402

HITS = 20  # per text, as in notebook 05
LISTS = pa.schema(
    {
        "reviewer_id": pa.string(),
        "generated_sequences": pa.list_(pa.string()),
        "sequence_scores": pa.list_(pa.float64()),  # log-probabilities
        "asins": pa.list_(pa.string()),  # ranked items, best first
    }
)
INTERACTIONS = pa.schema({"reviewer_id": pa.string(), "asin": pa.string(), "timestamp": pa.int64()})
BATCHES = pa.schema({"reviewer_id": pa.string(), "ptext": pa.string(), "seen_asins": pa.list_(pa.string())})


# Users to lists


@dataclass(frozen=True)
class Job:
    """What is asked for. A run that goes on must ask for the same, but for `workers` and `gpus`."""

    users: str  # a Parquet file
    out: str  # a folder of its own
    dataset: str = "sample"
    data_dir: str = "data"
    model: str = "tiny-llama"
    strategy: str = "beam5"
    engine: str = "transformers"  # or vllm
    policy: str = "round_robin"  # of ranking.POLICIES
    k: int = 10  # items per user
    batch: int = 256  # users
    threads: int = 1  # of each worker: sums in another number of threads are rounded otherwise
    workers: int = 2
    gpus: float = 0.0  # of each worker

    @property
    def folder(self) -> Path:
        return Path(self.out).resolve()

    def part(self, number: int) -> Path:
        """Where the lists of a batch are."""
        return self.folder / "parts" / f"{number:08d}.parquet"


class Worker:
    """Loads data and model once; then writes one batch of lists after the other."""

    def __init__(self, job: Job):
        import torch

        from gloss_utils import language_models, retrieval
        from gloss_utils.generation import CatalogTrie, get_strategy

        torch.set_num_threads(job.threads)
        self.job, self.strategy = job, get_strategy(job.strategy)
        self.prepared = splits.load_prepared(job.dataset, job.data_dir)
        self.catalog = self.prepared.catalog
        self.index = retrieval.BM25Index(self.catalog["text"].tolist())
        settings = language_models.read_run(self.prepared.paths, job.model)["settings"]
        self.options = {name: settings[name] for name in ("max_seq_length", "truncation")}  # prompts as in training
        if job.engine == "vllm":
            from tools import vllm_engine

            self.model = vllm_engine.load(self.prepared.paths, job.model, settings["max_seq_length"])
            adapter = language_models.find_adapter(self.prepared.paths, job.model)
            self.tokenizer = language_models.load_tokenizer(str(adapter))
        else:
            self.model, self.tokenizer = language_models.load_finetuned(self.prepared.paths, job.model)
        if self.strategy.constrained:
            self.options["trie"] = CatalogTrie(self.catalog["text"], self.tokenizer)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write the lists of one batch, a row of the work file, where they are not there yet."""
        number = int(batch["number"][0])
        if not self.job.part(number).exists():
            table = self.recommend(*(list(batch[name][0]) for name in ("reviewer_id", "ptext", "seen_asins")))
            write_atomically(self.job.part(number), lambda path: pq.write_table(table, path))
        return {"number": batch["number"], "users": np.array([len(batch["reviewer_id"][0])])}

    def recommend(self, reviewer_ids: list[str], ptexts: list[str], histories: list) -> pa.Table:
        """Write texts for some users, search the catalog with them, and rank what was found."""
        from gloss_utils import ranking
        from gloss_utils.generation import generate_batches

        seen = [self.prepared.item_numbers(list(history)) for history in histories]
        seen = [items[items >= 0] for items in seen]
        texts = self.catalog["text"]
        ptexts = [given or self.prompt(items, texts) for given, items in zip(ptexts, seen)]
        known = [row for row, prompt in enumerate(ptexts) if prompt]
        write = getattr(type(self.model), "generate_batches", generate_batches)  # a VllmModel has its own
        records = [{"generated_sequences": [], "sequence_scores": []} for _ in reviewer_ids]
        for rows, found in write(
            self.model, self.tokenizer, [ptexts[row] for row in known], self.strategy, **self.options
        ):
            for row, (lines, scores) in zip(rows, found):
                scores = [round(score, 4) for score in scores]
                records[known[row]] = {"generated_sequences": lines, "sequence_scores": scores}
        queries, width, log_probs = ranking.stack_queries(records)
        # Deep enough that seen items and items found by another text leave k, and no deeper: a user's list must not
        # depend on how long the histories of the batch's other users are.
        depths = np.array([max(HITS, self.job.k + len(items)) for items in seen])
        hits = self.index.search(queries, int(depths.max()))
        deep = np.arange(hits.items.shape[1]) >= np.repeat(depths, width)[:, None]
        hits.items[deep], hits.scores[deep] = -1, -np.inf
        ranked = ranking.rank_items(hits, width, self.job.policy, self.job.k, seen, log_probs)
        asins = self.catalog["asin"].to_numpy()
        lists = [asins[items[items >= 0]].tolist() for items in ranked]
        columns = [[record[name] for record in records] for name in ("generated_sequences", "sequence_scores")]
        return pa.table([reviewer_ids, *columns, lists], schema=LISTS)

    @staticmethod
    def prompt(items: np.ndarray, texts: pd.Series) -> str:
        """The prompt of a history; empty where no item of it is in the catalog, which gives an empty list."""
        return prompts.build_prompt(texts.iloc[items].tolist()) if len(items) else ""


def recommend(job: Job) -> Path:
    """Write the lists of all users to `lists.parquet` in the job's folder; returns its path."""
    job = replace(job, out=str(job.folder))  # a worker may have another working directory
    final, count = job.folder / "lists.parquet", cut_users(job)
    if final.exists():
        print(f"{show(final)} is up to date")
        return final
    waiting = [number for number in range(count) if not job.part(number).exists()]
    if len(waiting) < count:
        print(f"going on: {count - len(waiting)} of {count} batches are done")
    if waiting and job.workers:
        run_workers(job)
    elif waiting:
        work_alone(job, waiting)
    join_parts(job, count, final)
    for number in range(count):
        job.part(number).unlink()
    print(f"{show(final)}: {pq.read_metadata(final).num_rows:,} users")
    return final


def check(job: Job) -> None:
    """Refuse wrong names and numbers before a worker starts: what one raises there comes wrapped in words of Ray."""
    from gloss_utils import ranking
    from gloss_utils.generation import get_strategy
    from gloss_utils.queries import ENGINES

    check_number(job.batch, "batch", 1)
    check_number(job.k, "k", 1)
    check_choice(job.policy, ranking.POLICIES, "policy")
    check_choice(job.engine, ENGINES, "engine")
    get_strategy(job.strategy)


def cut_users(job: Job) -> int:
    """Cut the users into batches, a row each of `work.parquet`, or find them cut; returns how many there are.

    A folder that was begun with another job is refused.
    """
    check(job)
    prepared = splits.load_prepared(job.dataset, job.data_dir)
    asked = {name: value for name, value in asdict(job).items() if name not in ("users", "out", "workers", "gpus")}
    asked |= {"users": file_sha256(Path(job.users)), "data": prepared.fingerprint}
    asked["adapter"] = file_sha256(prepared.paths.require(prepared.paths.run_json(job.model), "adapter"))
    stamp, work = job.folder / "job.json", job.folder / "work.parquet"
    if stamp.exists() and (begun := read_json(stamp)) != asked:
        changed = ", ".join(name for name in asked if begun.get(name) != asked[name])
        raise ValueError(f"{show(job.folder)} was begun as another job ({changed}): give another --out, or delete it")
    if not work.exists():
        write_atomically(stamp, lambda path: path.write_text(json.dumps(asked, indent=1)))
        write_atomically(work, lambda path: write_batches(job, path))
    return pq.read_metadata(work).num_rows


def write_batches(job: Job, path: Path) -> None:
    """Write the work file: batches of users in their order, each a row and a row group."""
    schema = pa.schema([("number", pa.int64()), *((field.name, pa.list_(field.type)) for field in BATCHES)])
    with pq.ParquetWriter(path, schema) as writer:
        for number, users in enumerate(read_users(Path(job.users), job.batch)):
            columns = [[users[name].to_pylist()] for name in schema.names[1:]]
            writer.write_table(pa.table([[number], *columns], schema=schema))


def read_users(path: Path, size: int) -> Iterator[pa.Table]:
    """Read batches of `size` users; a ValueError where they are not sorted, stand twice, or have no history."""
    file = pq.ParquetFile(path)
    found = set(file.schema_arrow.names)
    if "reviewer_id" not in found or not found & {"ptext", "seen_asins"}:
        raise ValueError(f"{show(path)} has {sorted(found)}: it needs reviewer_id, and seen_asins or ptext")
    wanted = ["reviewer_id", "seen_asins" if "seen_asins" in found else "ptext"]
    last, waiting = "", BATCHES.empty_table()
    for part in file.iter_batches(batch_size=max(size, 4096), columns=wanted):
        users = fill_columns(pa.Table.from_batches([part]))
        ids = pa.concat_arrays([pa.array([last]), users["reviewer_id"].combine_chunks()])
        if not pc.all(pc.less(ids[:-1], ids[1:])).as_py():
            raise ValueError(f"{show(path)} is not sorted by reviewer_id, or names a user twice: sort it first")
        last, waiting = ids[-1].as_py(), pa.concat_tables([waiting, users])
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if len(waiting):
        yield waiting


def fill_columns(users: pa.Table) -> pa.Table:
    """Give users both columns: where the prompt is empty, the history makes it."""
    empty = {"ptext": "", "seen_asins": []}
    for name, value in empty.items():
        if name not in users.column_names:
            users = users.append_column(name, pa.array([value] * len(users), BATCHES.field(name).type))
    return users.select(BATCHES.names).cast(BATCHES)


def work_alone(job: Job, waiting: list[int]) -> None:
    """Do the missing batches in this process."""
    worker, work = Worker(job), pq.ParquetFile(job.folder / "work.parquet")
    for done, number in enumerate(waiting, start=1):
        row = work.read_row_group(number).to_pylist()[0]
        worker({name: [value] for name, value in row.items()})
        print(f"  {done:,} of {len(waiting):,} batches", flush=True)


def run_workers(job: Job) -> None:
    """Let Ray's workers do the missing batches: an actor each, which loads the model once.

    A worker that dies is started again by Ray, and its batch goes to a living one. Ray Data's own checkpoints are not
    used: they want a gibibyte for each reader, and a run without Ray could not go on from them.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    here = {"num_cpus": job.workers * job.threads + 1, "num_gpus": job.gpus * job.workers or None}  # one more to read
    ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else here))
    try:
        work = ray.data.read_parquet(str(job.folder / "work.parquet"))
        done = work.repartition(target_num_rows_per_block=1).map_batches(  # else one file goes to one worker
            Worker,
            fn_constructor_args=[job],
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=job.workers, max_tasks_in_flight_per_actor=1),
            num_cpus=job.threads,
            num_gpus=job.gpus or None,
        )
        users = sum(row["users"] for row in done.iter_rows())
        print(f"{users:,} users by {job.workers} workers")
    finally:
        ray.shutdown()


def join_parts(job: Job, count: int, final: Path) -> None:
    """Write the parts into one file, in the users' order, one after the other: memory holds a single part."""

    def write(path: Path) -> None:
        with pq.ParquetWriter(path, LISTS) as writer:
            for number in range(count):
                writer.write_table(pq.read_table(job.part(number)))

    write_atomically(final, write)


# Interactions to splits


def write_splits(interactions: Path, catalog: pd.DataFrame, folder: Path, users: int = 100_000) -> dict[str, int]:
    """Write `train`, `validation` and `test.parquet` as `splits.build_splits` builds them, some users at a time.

    The texts of all users together take ten times the room of the interactions. What a piece costs must not grow with
    the number of pieces: all items are looked up, and the catalog's texts laid out for Arrow, once; a piece is given
    its own validation users; the ids are read as plain strings, since to join the dictionaries of many row groups
    takes longer than they are worth. `histories.parquet` has every user's item numbers, and how many of the last ones
    are held out, so that what counts need not look ids up again. Returns the rows of each split.
    A ValueError where the users are not sorted, or an item is not in the catalog.
    """
    catalog = catalog.assign(text=catalog["text"].astype(pd.ArrowDtype(pa.string())))
    table = pq.read_table(interactions, columns=INTERACTIONS.names).cast(INTERACTIONS)
    items = pc.index_in(table["asin"], value_set=pa.array(catalog["asin"].astype(str), pa.string()))
    if items.null_count:
        unknown = table["asin"].filter(pc.is_null(items))[0]
        raise ValueError(f"{show(interactions)} has the item '{unknown}', which is not in the catalog: add it there")
    table = table.append_column("item", items := items.combine_chunks())
    runs = pc.run_end_encode(table["reviewer_id"].combine_chunks())
    names, bounds = runs.values.to_pylist(), np.append(0, runs.run_ends)
    times = table["timestamp"].to_numpy()
    back = np.flatnonzero(times[1:] < times[:-1]) + 1
    if not np.isin(back, bounds).all() or not pc.all(pc.less(runs.values[:-1], runs.values[1:]), min_count=0).as_py():
        raise ValueError(f"{show(interactions)} is not sorted: sort it by reviewer_id, and each user by timestamp")
    drawn = set(splits.draw_validation_users(names))
    writers, rows = {}, {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "histories.parquet").unlink(missing_ok=True)  # is there again when all else is
    try:
        for first in range(0, len(names), users):
            own = names[first : first + users]
            part = table[bounds[first] : bounds[first + len(own)]].to_pandas()
            made = splits.build_splits(part, catalog, [name for name in own if name in drawn])
            for name, dataset in made.items():
                written = dataset.data.table
                if name not in writers:
                    writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", written.schema)
                writers[name].write_table(written)
                rows[name] = rows.get(name, 0) + len(written)
    finally:
        for writer in writers.values():
            writer.close()
    columns = {"reviewer_id": runs.values, "items": pa.ListArray.from_arrays(bounds, items)}
    histories = pa.table(columns | {"held_out": [1 + (name in drawn) for name in names]})
    write_atomically(folder / "histories.parquet", lambda path: pq.write_table(histories, path))
    return rows


def read_histories(folder: Path) -> list[np.ndarray]:
    """Read from the folder of `write_splits` what `splits.training_histories` gives; int32 item numbers."""
    table = pq.read_table(folder / "histories.parquet", columns=["items", "held_out"])
    lists = table["items"].combine_chunks()
    items, bounds = lists.values.to_numpy(), lists.offsets.to_numpy()
    stops = bounds[1:] - table["held_out"].to_numpy()
    return [items[start:stop] for start, stop in zip(bounds[:-1].tolist(), stops.tolist())]


def split(dataset: str, data_dir: str, out: str) -> None:
    """Split what lies in the dataset's folder: `interactions.parquet`, sorted by user and time, `catalog.parquet`."""
    paths = find_dataset(dataset, data_dir)
    catalog = paths.read(paths.catalog, "catalog", pd.read_parquet)
    rows = write_splits(paths.require(paths.interactions, "interactions"), catalog, Path(out))
    print(", ".join(f"{name}: {count:,} users" for name, count in rows.items()), "in", show(Path(out).resolve()))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recommending = commands.add_parser("recommend", help="texts and ranked items for the users of a Parquet file")
    for name, field in Job.__dataclass_fields__.items():
        needed = {"required": True} if name in ("users", "out") else {"default": field.default}
        recommending.add_argument("--" + name.replace("_", "-"), type=field.type, **needed)
    splitting = commands.add_parser("split", help="Parquet splits of a prepared dataset, some users at a time")
    splitting.add_argument("--dataset", default="sample")
    splitting.add_argument("--data-dir", default="data")
    splitting.add_argument("--out", required=True)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = vars(parse(argv))
    try:
        if arguments.pop("command") == "split":
            split(**arguments)
        else:
            recommend(Job(**arguments))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
