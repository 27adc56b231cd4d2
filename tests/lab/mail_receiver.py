"""Take mail with STARTTLS, and append each message, as a line of JSON, to a file. It knows one user.

python3 mail_receiver.py PORT FILE CERTIFICATE KEY
"""

from __future__ import annotations

import base64
import json
import socketserver
import ssl
import sys
from typing import Any

LOGIN = b"\0ops\0right"


class Handler(socketserver.StreamRequestHandler):
    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())
        self.wfile.flush()

    def handle(self) -> None:
        encrypted = known = False
        self.say("220 mail ESMTP")
        while line := self.rfile.readline():
            command = line.split()[0].upper()
            if command in (b"EHLO", b"HELO"):
                self.say("250-mail" if not encrypted else "250-mail\r\n250-AUTH PLAIN")
                self.say("250 STARTTLS" if not encrypted else "250 8BITMIME")
            elif command == b"STARTTLS":
                self.say("220 go ahead")
                self.encrypt()
                encrypted = True
            elif command == b"AUTH":
                known = base64.b64decode(line.split()[-1]) == LOGIN
                self.say("235 welcome" if known else "535 wrong user or password")
            elif command == b"DATA" and known:
                self.say("354 go on")
                self.store(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                self.say("250 stored")
            elif command == b"QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 fine" if known else "530 log in first")

    def encrypt(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3], sys.argv[4])
        secure: Any = context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = secure.makefile("rb"), secure.makefile("wb")

    def store(self, message: str) -> None:
        with open(sys.argv[2], "a", encoding="utf-8") as file:
            file.write(json.dumps({"path": "/mail", "mail": message}) + "\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


if __name__ == "__main__":
    Server(("", int(sys.argv[1])), Handler).serve_forever()
