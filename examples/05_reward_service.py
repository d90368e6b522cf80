"""A reward service: any scorer behind HTTP. Standard library only; put your model where `score` is.

    POST /score   {"pairs": [[prompt, answer], ...]}     ->     {"scores": [number, ...]}

python examples/05_reward_service.py 8000
negalign-ray train --preset quickstart --set run.name=shouting \
    --set 'scorers.heads=[{name: shouting, kind: http, target: "http://127.0.0.1:8000/score"}]'
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def score(pairs: list[list[str]]) -> list[float]:
    """Share of capital letters in an answer, 0..1."""
    return [sum(letter.isupper() for letter in answer) / (1 + len(answer)) for _, answer in pairs]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """400 for a request that is wrong (not tried again), 500 for a failure that may pass (tried again)."""
        try:
            pairs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["pairs"]
        except (ValueError, KeyError, TypeError):
            self.send_error(400, "send JSON with a list of pairs")
            return
        body = json.dumps({"scores": score(pairs)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError:
        sys.exit(f"port {port} is taken; name another one: python examples/05_reward_service.py PORT")
    server.serve_forever()
