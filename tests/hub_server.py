"""A Hugging Face hub with one model: the three requests of its API that a download makes.

GET /api/models/NAME/revision/main (and /api/models/NAME with ?blobs=true) lists the files; HEAD and GET
/NAME/resolve/COMMIT/FILE answer with its ETag, its size and X-Repo-Commit, as the API's documentation says.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files in `folder` as the model `name` while the block runs; `fetched` lists what was downloaded."""

    def __init__(self, name, folder):
        self.name, self.files, self.fetched = name, {file.name: file for file in folder.iterdir()}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, body):
        path = urlsplit(request.path).path
        name = path.rsplit("/", 1)[-1]
        model = f"/api/models/{self.name}"
        if path in (model, f"{model}/revision/main", f"{model}/revision/{COMMIT}"):
            siblings = [{"rfilename": name, "size": file.stat().st_size} for name, file in self.files.items()]
            content, headers = json.dumps({"id": self.name, "sha": COMMIT, "siblings": siblings}).encode(), {}
        elif path == f"/{self.name}/resolve/{COMMIT}/{name}" and name in self.files:
            content = self.files[name].read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            if body:
                self.fetched.append(name)
        else:
            request.send_response(404)
            request.send_header("X-Error-Code", "RepoNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(200)
        for header, value in {**headers, "Content-Length": len(content)}.items():
            request.send_header(header, value)
        request.end_headers()
        if body:
            request.wfile.write(content)
