"""Append the body of each POST request, a line of JSON with its path, to a file. What is sent to /refused is refused.

python3 webhook_receiver.py PORT FILE
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/refused":
            self.send_response(403)
            self.end_headers()
            return
        with open(sys.argv[2], "a", encoding="utf-8") as file:
            file.write(json.dumps(body | {"path": self.path}) + "\n")
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
