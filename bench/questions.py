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
    """Run pair with an empty answer cache; return what its receipt says of the model."""
    (folder / "answers.db").unlink(missing_ok=True)
    (folder / "llm.yaml").write_text(
        f"backend: openai\nurl: {url}\nmodel: bench\nnum_ctx: 16384\nparallel: {PARALLEL}\nmax_failed_share: 1\n"
    )
    (folder / "pair.yaml").write_text("preset: default\n")
    subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/pair.py",
            turns,
            "--target",
            target,
            "--config",
            folder / "pair.yaml",
            "--prompt",
            ROOT / "config/prompts/pair.md",
            "--merge-prompt",
            ROOT / "config/prompts/merge.md",
            "--llm",
            folder / "llm.yaml",
            "--answers",
            folder / "answers.db",
            "--out",
            folder / "out",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads((folder / "out/receipt.json").read_text(encoding="utf-8"))["llm"]


class Recorder(BaseHTTPRequestHandler):
    """Passes everything on to the server at `target`, and keeps the questions."""

    target, questions = None, []

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if content:
            self.questions.append(content)
        answer = requests.request(
            self.command,
            self.target + self.path,
            data=content or None,
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        self.send_response(answer.status_code)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST

    def log_message(self, *_):
        pass


def bare(url, questions):
    """Send the questions, PARALLEL at a time; return the seconds it takes."""
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
        of_pair, of_bare = [], []
        for _ in range(ROUNDS):
            found = pair(server.listening_address, turns, target, folder)
            of_pair.append(found["asked"] / found["seconds"])
            of_bare.append(len(Recorder.questions) / bare(server.listening_address, Recorder.questions))
    ratio = statistics.median(through / loop for through, loop in zip(of_pair, of_bare, strict=True))
    print(
        f"{len(Recorder.questions)} questions, {PARALLEL} at a time: through pair "
        f"{statistics.median(of_pair):.1f}/s, bare loop {statistics.median(of_bare):.1f}/s, ratio {ratio:.2f} "
        f"(rounds: {', '.join(f'{p / b:.2f}' for p, b in zip(of_pair, of_bare, strict=True))})"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
