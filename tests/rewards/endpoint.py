"""An OpenAI-compatible endpoint on this machine, for tests of judges."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint(ThreadingHTTPServer):
    """Answers with the next of `plan` (the last one repeats): a reply, None, a status, or (status, headers)."""

    def __init__(self, plan):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.seen, self.lock = list(plan), [], threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, self.headers.get("Authorization"), body))
            plan = self.server.plan
            act = plan.pop(0) if len(plan) > 1 else plan[0]
        status, headers, content = 200, {}, act
        if isinstance(act, int):
            status = act
        elif isinstance(act, tuple):
            status, headers = act
        elif callable(act):
            content = act(body["messages"][1]["content"])
        message = content if isinstance(content, dict) else {"choices": [{"message": {"content": content}}]}
        data = json.dumps(message).encode() if status == 200 else b"secret detail"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def serving(*plan) -> Iterator[Endpoint]:
    server = Endpoint(plan)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
