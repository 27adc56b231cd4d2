from __future__ import annotations

import pytest

from minipc.artifacts.checksums import published_hash

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    "text",
    [
        f"{A}  k3s\n",
        f"{A} *k3s\n",
        f"{A}\tk3s\r\n",
        f"{A.upper()}  k3s\n",
        f"{A}  ./dist/k3s\n",
        f"{A} *dist\\k3s\n",
        f"\\{A}  k3s\n",
        f"\ufeff# a comment\n\n{B}  k3s-arm64\n{A}  k3s\n",
        f"{A}  k3s\n{A}  dist/k3s\n",
        f"{A}\n",
        f"{A}",
        f"  {A}  \n",
    ],
    ids=[
        "text mode",
        "binary mode",
        "tab and CRLF",
        "capitals",
        "path",
        "windows path",
        "escaped",
        "many lines",
        "twice the same",
        "bare hash",
        "bare without newline",
        "bare with blanks",
    ],
)
def test_finds_the_hash(text: str) -> None:
    assert published_hash(text, "k3s") == A


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no sha256"),
        ("<html>sign in first</html>", "no sha256"),
        (f"{A[:40]}  k3s", "no sha256"),
        (f"{A}  k3s-arm64\n{B}  notk3s\n", "does not name k3s"),
        (f"{A}\n{B}\n", "does not name k3s"),
        (f"{A}\n{B}  other\n", "does not name k3s"),
        (f"{A}  k3s\n{B}  k3s\n", "different hashes"),
        (f"{A}aa  k3s\n", "no sha256"),
    ],
    ids=[
        "empty",
        "portal page",
        "sha1",
        "only others",
        "two bare hashes",
        "bare among named",
        "contradiction",
        "too long",
    ],
)
def test_refuses_what_does_not_say_it(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        published_hash(text, "k3s")
