#!/usr/bin/python3
"""Test double of Slack on the machine: append each message from loopback to a file, with its time.

slack_receiver.py PORT FILE
"""

import http.server
import json
import sys
import time


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        line = {"at": time.time(), "type": self.headers["Content-Type"], "path": self.path, "body": body}
        with open(sys.argv[2], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")


http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
