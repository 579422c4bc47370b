"""Questions per second through pair, against a bare loop that sends the same requests to the same llama-server.

    python bench/questions.py data/tiny/tiny.gguf data/demo/combined/turns.parquet TARGET

pair does more for each: it builds and checks, reads log-probabilities, and writes every answer into the answer cache
before it counts. The two take turns, with the server's cache warm; the medians are printed.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
import xllamacpp

from huiyin.llm import openai
from scripts import pair

ROOT = Path(__file__).parent.parent
ROUNDS, PARALLEL = 5, 4


def llama_server(gguf):
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = gguf, {"bench"}
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 16384 * PARALLEL, PARALLEL, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def through_pair(url, turns, target, folder):
    """Run pair with an empty answer cache; return the part `llm` of its receipt."""
    (folder / "answers.db").unlink(missing_ok=True)
    (folder / "llm.yaml").write_text(
        f"backend: openai\nurl: {url}\nmodel: bench\nnum_ctx: 16384\nparallel: {PARALLEL}\nmax_failed_share: 1\n"
    )
    (folder / "pair.yaml").write_text("preset: default\n")
    prompts = ROOT / "config/prompts"
    options = f"--config {folder}/pair.yaml --prompt {prompts}/pair.md --merge-prompt {prompts}/merge.md"
    options += f" --llm {folder}/llm.yaml --answers {folder}/answers.db --out {folder}/out"
    with contextlib.redirect_stdout(None):
        pair.main([turns, "--target", target, *options.split()])
    return json.loads((folder / "out/receipt.json").read_text(encoding="utf-8"))["llm"]


def recorded(url, turns, target, folder):
    """Return the bodies of the requests that pair sends."""
    bodies, send = [], openai.send

    def record(session, method, url, read_seconds, body=None):
        bodies.extend([body] if body else [])
        return send(session, method, url, read_seconds, body)

    openai.send = record
    through_pair(url, turns, target, folder)
    openai.send = send
    return bodies


def bare(url, questions):
    """Send the questions, PARALLEL at a time; return the seconds that takes."""
    session = requests.Session()
    session.trust_env = False

    def send(body):
        session.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status()

    started = time.monotonic()
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(send, questions))
    return time.monotonic() - started


def main(gguf, turns, target):
    server = llama_server(gguf)
    url, pair_rates, bare_rates = server.listening_address, [], []
    with tempfile.TemporaryDirectory() as folder:
        questions = recorded(url, turns, target, Path(folder))
        for _ in range(ROUNDS):
            llm = through_pair(url, turns, target, Path(folder))
            pair_rates.append(llm["asked"] / llm["seconds"])
            bare_rates.append(len(questions) / bare(url, questions))
    ratios = [through / loop for through, loop in zip(pair_rates, bare_rates, strict=True)]
    print(
        f"{len(questions)} questions, {PARALLEL} at a time: through pair {statistics.median(pair_rates):.1f}/s, "
        f"bare loop {statistics.median(bare_rates):.1f}/s, ratio {statistics.median(ratios):.2f} "
        f"(rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
