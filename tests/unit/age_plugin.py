"""A plugin of age for tests: a program on PATH that speaks age's plugin protocol, in place of a hardware token."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from minipc.secrets import age

_PROGRAM = '''#!{python}
"""age's plugin protocol, with a key that is the identity itself."""
import base64, sys

def read():
    head = sys.stdin.readline().split()
    body = ""
    while len(line := sys.stdin.readline().rstrip("\\n")) == 64:
        body += line
    return head[1:], body + line

def send(*words, body=""):
    print("->", *words, flush=False)
    print(body, flush=True)

def hidden(text):
    raw = base64.b64decode(text + "=" * (-len(text) % 4))
    return base64.b64encode(bytes(byte ^ 0x5A for byte in raw)).decode().rstrip("=")

machine, wanted, keys, stanzas = sys.argv[1].partition("=")[2], [], [], []
while True:
    head, body = read()
    if head[0] == "done":
        break
    if head[0] == "add-identity":
        wanted.append(head[1])
    if head[0] == "wrap-file-key":
        keys.append(body)
    if head[0] == "recipient-stanza" and head[2] == "fake" and head[3] in wanted:
        stanzas.append((head[1], body))
open({uses!r}, "a").write(machine + "\\n")
if machine == "recipient-v1":
    for number, key in enumerate(keys):
        for name in wanted:
            send("recipient-stanza", str(number), "fake", name, body=hidden(key))
            read()
for number, body in stanzas:
    send("file-key", number, body=hidden(body))
    read()
send("done")
'''
# Bech32 of `age-plugin-fake-` with the bytes of "slot-1".
TOKEN = "AGE-PLUGIN-FAKE-1WDKX7APDXYXJ4SSE"


def plugin_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the plugin `fake` on PATH; returns the file in which it notes each use."""
    uses = folder / "uses"
    program = folder / "bin" / "age-plugin-fake"
    program.parent.mkdir()
    program.write_text(_PROGRAM.format(python=sys.executable, uses=str(uses)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(age, "_opened_by_token", {})
    return uses
