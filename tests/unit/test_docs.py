"""The documentation says what is there: links, commands, options, paths, keys, exit codes, decisions."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from minipc.cli.main import cli
from minipc.config.components import BY_NAME
from minipc.config.load import GONE, MOVED, OLD_SLACK, RENAMED
from minipc.config.schema import Settings
from minipc.core import errors
from minipc.core.paths import ROOT

DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))
SECTIONS = ["Context", "Decision", "Consequences", "Alternatives rejected"]
ONE_PAGE = 500  # words

# Made by commands that the documents describe; some are in no clone.
GENERATED = {"inventory/approved.json", "inventory/allowed_signers"} | {
    "inventory/pins.json",
    "inventory/vpn_peers.json",
    "secrets/production.age",
}
# The component that docs/howto/add-a-component.md makes up.
EXAMPLE = "memcached"
# Stand for a name in paths and commands.
PLACEHOLDER = re.compile(r"NAME|COMPONENT|FILE|HASH|HOST|KIND|ID|…|\.\.\.")

per_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))


def fences(text: str) -> list[str]:
    """The contents of the fenced and indented code blocks."""
    return re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S) + re.findall(r"^    (\S.*)$", text, re.M)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def spans(text: str) -> list[str]:
    """What is in backticks."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@per_document
def test_relative_links_resolve(path):
    text = re.sub(r"`[^`\n]*`", "", prose(path.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading"


def test_every_page_is_in_the_index():
    index = ROOT / "docs/README.md"
    listed = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", index.read_text())}
    assert set(DOCS) - listed == {index}


# --- commands -------------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The words after `minipc` of each command line in a text."""
    for line in text.splitlines():
        for found in re.finditer(r"(?:^|[\s(`/])minipc ((?!is |import |: )[a-z\-\[].*)", line):
            rest = re.split(r"\s#|\s[|<>]\s|&&|;|`|\"\$\(|\)", found[1])[0]
            yield shlex.split(rest.replace("'", "").replace('"', ""))


def complaint(words: list[str]) -> str:
    """What is wrong with a command line, empty when nothing is."""
    command: click.Command = cli
    context = click.Context(cli)
    path = "minipc"
    while isinstance(command, click.Group):
        name = words.pop(0) if words else ""
        for alternative in name.split("|")[1:]:
            if command.get_command(context, alternative) is None:
                return f"`{path}` has no command `{alternative}`"
        name = name.split("|")[0]
        if name in ("", "…", "--help", "--version"):
            return ""
        found = command.get_command(context, name)
        if found is None:
            return f"`{path}` has no command `{name}`"
        command, path = found, f"{path} {name}"
    return _arguments(command, path, words)


def _arguments(command: click.Command, path: str, words: list[str]) -> str:
    options = {name: param for param in command.params for name in param.opts if isinstance(param, click.Option)}
    places = [param for param in command.params if isinstance(param, click.Argument)]
    words = [word.strip("[]") for word in words]
    while words:
        word = words.pop(0)
        if word == "--":
            return ""
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            if name not in options and name != "--help":
                return f"`{path}` has no option `{name}`"
            if name in options and not options[name].is_flag and not equals:
                value = words.pop(0) if words else ""
                if not _allowed(options[name], value):
                    return f"`{path} {name} {value}`: not a choice"
            continue
        if not places:
            return f"`{path}` takes no argument `{word}`"
        if not _allowed(places[0], word):
            return f"`{path} {word}`: not a choice"
        if places[0].nargs == 1:
            places.pop(0)
    return ""


def _allowed(param: click.Parameter, value: str) -> bool:
    choices = param.type.choices if isinstance(param.type, click.Choice) else None
    return choices is None or bool(PLACEHOLDER.search(value)) or set(value.split("|")) <= set(map(str, choices))


@per_document
def test_commands_exist(path):
    text = path.read_text()
    candidates = "\n".join([*fences(text), *(span for span in spans(text))])
    for words in commands(candidates):
        assert complaint(list(words)) == "", f"minipc {' '.join(words)}"


def test_the_commands_are_found_at_all():
    found = {words[0] for words in commands("\n".join(fences((ROOT / "README.md").read_text())))}
    assert {"init", "up", "lab"} <= found


@pytest.mark.parametrize(
    "line",
    [
        "minipc frobnicate",
        "minipc lab sideways",
        "minipc plan --everything",
        "minipc config check",
        "minipc doctor now",
    ],
)
def test_a_wrong_command_is_noticed(line):
    (words,) = commands(line)
    assert complaint(words)


def test_messages_name_commands_that_exist():
    """The next step in an error message, and the comments beside settings."""
    for path in tracked():
        if path.suffix == ".py" and path.parts[len(ROOT.parts)] in ("minipc", "playbooks", "group_data", "inventory"):
            for text in strings(path):
                for span in re.findall(r"`(minipc [a-z][^`{]*)", text):
                    for words in commands(span):
                        assert complaint(words) == "", f"{path.relative_to(ROOT)}: {span}"


def strings(path: Path) -> Iterator[str]:
    """The comments and string constants of a Python file."""
    source = path.read_text()
    yield from (node.value for node in ast.walk(ast.parse(source)) if _is_string(node))
    yield from re.findall(r"#.*", source)


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@per_document
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = path.read_text()
    mentioned = re.findall(r"^(?:sudo )?make ([a-z-]+)", "\n".join([*fences(text), *spans(text)]), re.M)
    assert set(mentioned) <= targets


def test_readme_begins_with_the_two_commands():
    first = fences((ROOT / "README.md").read_text())[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make rehearse", "make test"]
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("make test")


def test_exit_codes_are_those_of_the_cli():
    given = {name: value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    for path in (ROOT / "README.md", ROOT / "docs/concepts/verdicts.md"):
        table = dict(re.findall(r"^\| (\d+) \| (.*?)[;,(|]", path.read_text(), re.M))
        for name, code in given.items():
            words = name.removeprefix("EXIT_").replace("_", " ").lower()
            assert words in table[str(code)], f"{path.name}: {code} is {words}"


# --- paths and keys -------------------------------------------------------------------------------------------------


@cache
def tracked() -> list[Path]:
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def repository_paths(text: str) -> set[str]:
    """What looks like a path in the repository: in backticks, or an argument of pyinfra."""
    rooms = {path.relative_to(ROOT).parts[0] for path in tracked()}
    words = spans(text) + [word for block in fences(text) for word in re.findall(r"(?:deploys|inventory)/\S+", block)]
    found = set()
    for word in words:
        name = word.split("::")[0].rstrip("/,.")
        if re.fullmatch(r"[\w.…*-]+(/[\w.…*<>-]+)*", name) and name.split("/")[0] in rooms:
            found.add(name)
    return {name for name in found - GENERATED if EXAMPLE not in name}


@per_document
def test_paths_exist(path):
    for name in repository_paths(path.read_text()):
        pattern = re.sub(r"NAME|COMPONENT|<component>|…", "*", name)
        assert list(ROOT.glob(pattern)), f"{name} is not there"


def test_paths_are_found_at_all():
    assert {"inventory", "deploys", "inventory/production.py"} <= repository_paths((ROOT / "README.md").read_text())


# Named like a key: the roles of the service's database.
ROLES = {"parking_owner", "parking_reader"}


@per_document
def test_configuration_keys_exist(path):
    known = {f"{section}_{key}" for section, field in Settings.model_fields.items() for key in _keys(field.annotation)}
    sections = "|".join(name for name, field in Settings.model_fields.items() if _keys(field.annotation))
    for span in spans(path.read_text()):
        if re.fullmatch(rf"(?:{sections})_[a-z_]+", span) and span not in BY_NAME:
            moved = {*MOVED, *GONE, *RENAMED, *OLD_SLACK} if path.name == "CHANGELOG.md" else ()
            assert span in {*known, *ROLES, *moved}, f"{span} is no key of group_data"


def _keys(annotation: object) -> list[str]:
    return list(getattr(annotation, "model_fields", ()))


# --- decisions ------------------------------------------------------------------------------------------------------


def test_each_decision_has_its_own_number():
    assert len({path.name[:4] for path in DECISIONS}) == len(DECISIONS)


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_its_sections_on_one_page(path):
    text = path.read_text()
    assert re.match(rf"# {path.name[:4]}: \S", text), "the title begins with the number"
    assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS
    assert len(text.split()) <= ONE_PAGE


def test_every_dependency_has_its_reason():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = project["dependencies"] + project["optional-dependencies"]["dev"]
    reasons = (ROOT / "docs/decisions/0002-dependencies.md").read_text()
    rows = {name for row in re.findall(r"^\| ([\w, -]+) \|", reasons, re.M) for name in row.split(", ")}
    assert {re.split(r"[<>=]", name)[0] for name in names} <= rows


# --- the whole repository -------------------------------------------------------------------------------------------


def test_nothing_outside_the_repository_is_mentioned():
    # Written in pieces, so that this file doesn't contain them.
    outside = ["../" + "shared", "/" + "work/", ".libr" + "ary"]
    for path in tracked():
        text = path.read_text(errors="replace")
        for name in outside:
            assert name not in text, f"{path.relative_to(ROOT)} mentions {name}"


def test_every_module_of_the_playbooks_is_in_their_table():
    import playbooks

    modules = {path.stem for path in (ROOT / "playbooks").glob("*.py")} - {"__init__"}
    told = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", playbooks.__doc__ or "", re.M)
    assert {name for names in told for name in re.findall(r"`(\w+)`", names)} == modules


def test_each_line_of_the_threat_model_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    table = text[text.index("| attacker | does not get |") :]
    lines = [line for line in table.splitlines()[2:] if line.startswith("|")]
    assert len(lines) > 20
    for line in lines:
        named = re.findall(r"`(tests/[\w/]+\.py)`", line.rpartition("does not")[2])
        assert named, line
        assert [path for path in named if not (ROOT / path).is_file()] == [], line
