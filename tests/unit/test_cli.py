"""What `minipc --help` shows: every command, once, in groups, and no line cut."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from minipc.cli.main import cli

ROOM = 45  # characters


def test_every_command_is_shown_once_and_no_line_is_cut():
    page = CliRunner().invoke(cli, ["--help"], terminal_width=80).output.partition("Every day:")[2]
    shown = dict(re.findall(r"^  (\S+) +(.+)$", page, re.M))
    assert sorted(shown) == sorted(re.findall(r"^  (\S+)", page, re.M)) == cli.list_commands(click.Context(cli))
    for name, text in shown.items():
        assert len(text) <= ROOM, name
        assert "…" not in text, name


@pytest.mark.parametrize("command", [["adopt"], ["rebuild"], ["plan"], ["apply"], ["verify"]])
def test_a_command_says_which_inventory_it_means_by_default(command):
    assert "[default: production]" in CliRunner().invoke(cli, [*command, "--help"]).output
