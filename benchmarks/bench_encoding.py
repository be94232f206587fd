"""Encoding the catalog's titles with MiniLM: ours against the plain fp32 call and against retriv.

python benchmarks/bench_encoding.py --raw-dir <folder> [--titles 2000]
"""

import argparse
import os
import tempfile
import time

import numpy as np

from gloss_utils import dense, raw_data


def plain(texts: list[str]) -> np.ndarray:
    return dense.load_encoder("minilm", "float32").encode(texts, normalize_embeddings=True, show_progress_bar=False)


def retriv(texts: list[str]) -> np.ndarray:
    from retriv import Encoder

    model = Encoder(model=str(dense.minilm_directory()), device="cpu")
    return model.bencode(texts, batch_size=512, show_progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw-dir", default="")
    parser.add_argument("--titles", type=int, default=0, help="a seeded sample of so many; 0 for all")
    options = parser.parse_args()
    dataset = "beauty" if options.raw_dir else "sample"
    with tempfile.TemporaryDirectory() as data_dir:
        prepared = raw_data.prepare(dataset, raw_dir=options.raw_dir, data_dir=data_dir, progress=False)
    texts = prepared.catalog["text"].tolist()
    if options.titles:
        texts = [texts[place] for place in np.random.default_rng(42).permutation(len(texts))[: options.titles]]
    for encode in (plain, dense.encode, retriv):
        encode(texts[:32])  # load the model before the clock starts
    paths = {"ours": dense.encode, "plain fp32": plain, "retriv": retriv}
    seconds, vectors = {}, {}
    for name, encode in paths.items():
        start = time.perf_counter()
        vectors[name] = encode(texts)
        seconds[name] = time.perf_counter() - start
        cosine = (vectors["ours"] * vectors[name]).sum(axis=1).min()
        ratio = seconds[name] / seconds["ours"]
        print(
            f"{name:12s} {seconds[name]:7.1f} s  {len(texts) / seconds[name]:6.0f} titles/s  "
            f"{ratio:4.1f} x ours, lowest cosine to ours {cosine:.5f}",
            flush=True,
        )
    print(f"{len(texts):,} titles of {dataset}, {dense.fast_dtype()}, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
