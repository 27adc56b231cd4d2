"""Reading the controller's apt sources in every format that Debian's installers and images write."""

from __future__ import annotations

from pathlib import Path

import pytest

from minipc.core.errors import MissingPrerequisiteError
from minipc.images import apt_sources
from minipc.images.apt_sources import (
    Mirrors,
    Source,
    choose_mirrors,
    codename,
    parse_deb822,
    parse_one_line,
    read_sources,
    render_deb822,
)

DEB822 = """\
# written by the installer
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
 non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://security.example/debian-security
# in the middle
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main
"""


def test_deb822() -> None:
    assert parse_deb822(DEB822) == [
        Source(
            ("deb", "deb-src"),
            ("http://mirror.example/debian/",),
            ("bookworm", "bookworm-updates"),
            ("main", "non-free-firmware"),
        ),
        Source(("deb",), ("http://security.example/debian-security",), ("bookworm-security",), ("main",)),
    ]


def test_one_line() -> None:
    text = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # note
deb-src http://mirror.example/debian bookworm main
"""
    assert parse_one_line(text) == [
        Source(("deb",), ("http://mirror.example/debian",), ("bookworm",), ("main", "contrib")),
        Source(("deb-src",), ("http://mirror.example/debian",), ("bookworm",), ("main",)),
    ]


def test_mirrors_of_the_controllers_suite_are_chosen() -> None:
    other = Source(("deb",), ("http://vendor.example/apt",), ("tools-bookworm",), ("main",))
    cdrom = Source(("deb",), ("cdrom:[Debian]/",), ("bookworm",), ("main",))
    found = choose_mirrors([other, cdrom, *parse_deb822(DEB822)], "bookworm")
    assert found == Mirrors("http://mirror.example/debian", "http://security.example/debian-security")


def test_a_controller_without_security_mirror() -> None:
    sources = parse_one_line("deb http://mirror.example/debian bookworm main")
    mirrors = choose_mirrors(sources, "bookworm")
    assert mirrors.security is None
    assert "security" not in render_deb822(mirrors, "trixie")


def test_without_a_mirror_the_error_names_the_variable() -> None:
    with pytest.raises(MissingPrerequisiteError, match="MINIPC_LAB_MIRROR"):
        choose_mirrors([], "bookworm")


def test_mirror_lists_of_cloud_images(tmp_path: Path) -> None:
    listed = tmp_path / "debian.list"
    listed.write_text("# mirrors\nhttp://mirror.example/debian\n")
    sources = [Source(("deb",), (f"mirror+file:{listed}",), ("trixie",), ("main",))]
    assert choose_mirrors(sources, "trixie").main == "http://mirror.example/debian"


def test_both_kinds_of_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://one.example/debian bookworm main\n")
    (tmp_path / "sources.list.d" / "b.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "c.sources.bak").write_text(DEB822)
    assert [source.uris[0] for source in read_sources(tmp_path)] == [
        "http://one.example/debian",
        "http://mirror.example/debian/",
        "http://security.example/debian-security",
    ]


def test_environment_variables_have_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt_sources, "apt_proxy", lambda: None)
    monkeypatch.setenv("MINIPC_LAB_MIRROR", "http://mine.example/debian")
    assert apt_sources.controller_mirrors() == Mirrors("http://mine.example/debian", None, None)


def test_rendered_sources_are_read_back() -> None:
    text = render_deb822(Mirrors("http://m.example/debian", "http://s.example/security"), "trixie")
    main, security = parse_deb822(text)
    assert main.suites == ("trixie", "trixie-updates")
    assert security.suites == ("trixie-security",)


def test_ports_of_mirrors_are_admitted() -> None:
    mirrors = Mirrors("http://m.example:8080/debian", None, "http://proxy.example:3142")
    assert mirrors.web_ports == {80, 443, 8080, 3142}


def test_codename() -> None:
    assert codename('ID=debian\nVERSION_CODENAME=bookworm\nVERSION_ID="12"\n') == "bookworm"
    assert codename("ID=other\n") == "unknown"
