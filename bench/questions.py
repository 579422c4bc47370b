"""Questions per second through pair, against a bare loop that sends the same requests to the same llama-server.

    python bench/questions.py data/tiny/tiny.gguf data/demo/combined/turns.parquet TARGET

pair does more for each: it builds and checks, reads log-probabilities, and writes every answer into the answer cache
before it counts. The two take turns, with the server's cache warm; the medians are printed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests
import xllamacpp

ROOT = Path(__file__).parent.parent
ROUNDS, PARALLEL = 5, 4


def llama_server(gguf):
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = gguf, {"bench"}
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 16384 * PARALLEL, PARALLEL, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def pair(url, turns, target, folder):
    """Run pair with an empty answer cache; return the part `llm` of its receipt."""
    (folder / "answers.db").unlink(missing_ok=True)
    (folder / "llm.yaml").write_text(
        f"backend: openai\nurl: {url}\nmodel: bench\nnum_ctx: 16384\nparallel: {PARALLEL}\nmax_failed_share: 1\n"
    )
    (folder / "pair.yaml").write_text("preset: default\n")
    prompts = ROOT / "config/prompts"
    options = {
        "target": target,
        "config": folder / "pair.yaml",
        "prompt": prompts / "pair.md",
        "merge-prompt": prompts / "merge.md",
        "llm": folder / "llm.yaml",
        "answers": folder / "answers.db",
        "out": folder / "out",
    }
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    command = [sys.executable, ROOT / "scripts/pair.py", turns, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "out/receipt.json").read_text(encoding="utf-8"))["llm"]


class Recorder(BaseHTTPRequestHandler):
    """Forwards each request to the server at `target`, and keeps the questions."""

    target, questions = None, []

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if content:
            self.questions.append(content)
        headers, url = {"Content-Type": "application/json"}, self.target + self.path
        answer = requests.request(self.command, url, data=content or None, headers=headers, timeout=60)
        self.send_response(answer.status_code)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST

    def log_message(self, *_):
        pass


def bare(url, questions):
    """Send the questions, PARALLEL at a time; return the seconds that takes."""
    session = requests.Session()
    session.trust_env = False

    def send(content):
        headers = {"Content-Type": "application/json"}
        session.post(f"{url}/v1/chat/completions", data=content, headers=headers, timeout=60).raise_for_status()

    started = time.monotonic()
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(send, questions))
    return time.monotonic() - started


def main(gguf, turns, target):
    server = llama_server(gguf)
    Recorder.target = server.listening_address
    with tempfile.TemporaryDirectory() as folder, ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as recorder:
        folder = Path(folder)
        threading.Thread(target=recorder.serve_forever, daemon=True).start()
        pair(f"http://127.0.0.1:{recorder.server_port}", turns, target, folder)
        recorder.shutdown()
        pair_rates, bare_rates = [], []
        for _ in range(ROUNDS):
            llm = pair(server.listening_address, turns, target, folder)
            pair_rates.append(llm["asked"] / llm["seconds"])
            bare_rates.append(len(Recorder.questions) / bare(server.listening_address, Recorder.questions))
    ratios = [through / loop for through, loop in zip(pair_rates, bare_rates, strict=True)]
    print(
        f"{len(Recorder.questions)} questions, {PARALLEL} at a time: through pair "
        f"{statistics.median(pair_rates):.1f}/s, bare loop {statistics.median(bare_rates):.1f}/s, "
        f"ratio {statistics.median(ratios):.2f} (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
