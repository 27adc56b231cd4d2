"""The deploy repository, with the operator's own credentials. ArgoCD's key only reads."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minipc.deploy_repository import operator_remote
from minipc.errors import ConfigError, CouldNotVerifyError, MinipcError
from minipc.gitops.application import Application
from minipc.inventory import Target, offsite_target
from minipc.paths import state_dir
from minipc.wording import first_line

TIMEOUT_S = 120
# A tag for each desired state whose smoke passed: release/ENVIRONMENT/20261121T143000Z.
RELEASED = "release"


@dataclass(frozen=True)
class Commit:
    """A commit: full hash, when (RFC 3339), by whom, subject."""

    hash: str
    time: str
    author: str
    subject: str

    def __str__(self) -> str:
        return f"{self.hash[:12]}  {self.time[:16].replace('T', ' ')}  {self.subject}"


class Repository:
    """A clone of our own, brought up to date when it is opened. Nothing in it is edited by hand.

    Args:
        url: where it is; a path, or an address that git understands.
        directory: of the clone.
        branch: where desired state is.
        environment: more environment variables for git, such as GIT_SSH_COMMAND.

    Raises:
        CouldNotVerifyError: it can't be reached.
    """

    def __init__(self, url: str, directory: Path, branch: str, environment: Mapping[str, str] | None = None) -> None:
        self._url, self._directory, self._branch = url, directory, branch
        self._environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", **(environment or {})}
        if not (directory / ".git").exists():
            directory.mkdir(parents=True, exist_ok=True)
            self._git("init", "--quiet", f"--initial-branch={branch}")
            self._git("remote", "add", "origin", url)
        self._git("remote", "set-url", "origin", url)
        self._remote("fetch", "--quiet", "--prune", "--tags", "--force", "origin")

    @property
    def head(self) -> str:
        """The branch's newest commit. Raises ConfigError when there is no such branch."""
        try:
            return self._git("rev-parse", "--verify", "--quiet", f"refs/remotes/origin/{self._branch}")
        except MinipcError:
            raise ConfigError(
                f"{self._url} has no branch {self._branch}", "docs/howto/release.md says how it is made"
            ) from None

    def commit(self, name: str) -> Commit:
        """A commit by hash, tag or branch.

        Raises:
            ConfigError: there is none.
        """
        try:
            found = self._git("log", "-1", "--format=%H%x00%cI%x00%an%x00%s", f"{name}^{{commit}}", "--")
        except MinipcError:
            raise ConfigError(f"{self._url} has no commit {name}", "`minipc release status` lists some") from None
        return Commit(*found.split("\0"))

    def last_change(self, path: str, until: str) -> Commit:
        """The newest commit up to `until` that changed something below `path`. Raises ConfigError."""
        found = self._git("log", "-1", "--format=%H", until, "--", path)
        return self.commit(found or until)

    def between(self, older: str, newer: str) -> list[Commit]:
        """The commits in `newer` that are not in `older`, newest first. Raises MinipcError."""
        return [self.commit(each) for each in self._git("rev-list", f"{older}..{newer}", "--").split()]

    def archive(self, commit: str) -> bytes:
        """A tar of the tree of a commit. Raises MinipcError."""
        return self._call("archive", "--format=tar", commit)

    def same_tree(self, one: str, other: str) -> bool:
        """Whether two commits are the same desired state. Raises MinipcError."""
        return self._git("rev-parse", f"{one}^{{tree}}") == self._git("rev-parse", f"{other}^{{tree}}")

    def released(self, environment: str) -> list[Commit]:
        """Desired states whose smoke passed, newest first; a state that was released twice is in it twice."""
        pattern = f"refs/tags/{RELEASED}/{environment}/*"
        tags = self._git("for-each-ref", "--sort=-refname", "--format=%(refname)", pattern).split()
        return [self.commit(tag) for tag in tags]

    def mark_released(self, environment: str, commit: str, stamp: str) -> None:
        """Tags a desired state whose smoke passed; stamp: UTC, such as 20261121T143000Z. Raises CouldNotVerifyError."""
        self._remote("push", "--quiet", "origin", f"{commit}:refs/tags/{RELEASED}/{environment}/{stamp}")
        self._remote("fetch", "--quiet", "--tags", "--force", "origin")

    def restore(self, earlier: str, message: str) -> str:
        """Commits an earlier desired state on top of the branch, as a whole, and pushes it; returns the commit.

        Raises:
            CouldNotVerifyError: someone else pushed meanwhile, or we may not.
            MinipcError: git has no name and address for the commit's author.
        """
        tree = self._git("rev-parse", f"{earlier}^{{tree}}")
        made = self._git("commit-tree", tree, "-p", self.head, "-m", message)
        self._remote("push", "--quiet", "origin", f"{made}:refs/heads/{self._branch}")
        self._remote("fetch", "--quiet", "origin")
        return made

    def write(self, path: str, content: str, message: str) -> str:
        """Commits one file on top of the branch and pushes it; returns the commit, the head when nothing changes.

        Raises:
            CouldNotVerifyError: someone else pushed meanwhile, or we may not.
        """
        blob = self._git("hash-object", "-w", "--stdin", stdin=content.encode())
        index = {"GIT_INDEX_FILE": str(self._directory / ".git" / "minipc-index")}
        self._git("read-tree", self.head, environment=index)
        self._git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", environment=index)
        tree = self._git("write-tree", environment=index)
        if tree == self._git("rev-parse", f"{self.head}^{{tree}}"):
            return self.head
        made = self._git("commit-tree", tree, "-p", self.head, "-m", message)
        self._remote("push", "--quiet", "origin", f"{made}:refs/heads/{self._branch}")
        self._remote("fetch", "--quiet", "origin")
        return made

    def _remote(self, *argv: str) -> None:
        try:
            self._git(*argv)
        except MinipcError as error:
            raise CouldNotVerifyError(
                f"the deploy repository {self._url}: {error.what}", "check the address and your own access to it"
            ) from None

    def _git(self, *argv: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> str:
        return self._call(*argv, stdin=stdin, environment=environment).decode(errors="replace").strip()

    def _call(self, *argv: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
        try:
            done = subprocess.run(
                ["git", "-C", str(self._directory), *argv],
                input=stdin,
                capture_output=True,
                timeout=TIMEOUT_S,
                env={**self._environment, **(environment or {})},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MinipcError(f"git {argv[0]}: {error}", "`minipc doctor` says what this controller lacks") from error
        if done.returncode:
            raise MinipcError(
                f"git {argv[0]}: {first_line(done.stderr.decode(errors='replace')) or 'failed'}",
                "look at the deploy repository in a clone of your own",
            )
        return done.stdout


def open_repository(target: Target, application: Application, address: str | None = None) -> Repository:
    """The deploy repository of a machine, with a clone in the state directory.

    Args:
        address: where the operator reaches it; None: on the off-site machine where that hosts it, else where ArgoCD
            does.

    Raises:
        ConfigError: `backups_offsite` names a machine that the inventory hasn't.
        CouldNotVerifyError: it can't be reached.
    """
    directory = state_dir("deploy-repository") / target.alias
    offsite = None
    if address is None and target.settings.argocd.repository is None:
        offsite = offsite_target(target.settings.environment, target)
    if offsite:
        remote = operator_remote(offsite)
        return Repository(remote.url, directory, application.branch, remote.environment)
    return Repository(address or application.repository, directory, application.branch)
