"""The deploy repository, with the operator's own credentials. ArgoCD's key only reads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minipc.core.environment import Environment
from minipc.core.errors import ConfigError, CouldNotVerifyError, MinipcError, RefusedError
from minipc.core.paths import state_dir
from minipc.gitops import approvals, git, signing
from minipc.gitops.application import Application
from minipc.gitops.approvals import Approvals
from minipc.gitops.hosted_repository import operator_remote
from minipc.gitops.tree import Files, Tree, read
from minipc.remote.inventory import Target, offsite_target

# A tag for each desired state that was released: release/ENVIRONMENT/SERVICE/20261121T143000Z.
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


@dataclass(frozen=True)
class Trust:
    """What makes a commit one that may be synced.

    Attributes:
        environment: whose key signs the commits that minipc makes.
        signers: the file of those who may sign.
        approvals: what was approved last.
    """

    environment: Environment
    signers: Path
    approvals: Approvals


class Repository:
    """A clone of our own, brought up to date when it is opened. Nothing in it is checked out or edited by hand.

    Args:
        url: where it is; a path, or an address that git understands.
        directory: of the clone.
        branch: where desired state is.
        trust: who may sign, and what was approved last.
        environment: more environment variables for git, such as GIT_SSH_COMMAND.

    Raises:
        CouldNotVerifyError: it can't be reached.
    """

    def __init__(
        self, url: str, directory: Path, branch: str, trust: Trust, environment: Mapping[str, str] | None = None
    ) -> None:
        self._url, self._directory, self.branch, self.trust = url, directory, branch, trust
        self._environment = dict(environment or {})
        self._lock = threading.Lock()
        if not (directory / ".git").exists():
            directory.mkdir(parents=True, exist_ok=True)
            self._git("init", "--quiet", "--template=", f"--initial-branch={branch}")
            self._git("remote", "add", "origin", url)
        else:
            self._git("remote", "set-url", "origin", url)
        self._remote("fetch", "--quiet", "--prune", "--tags", "--force", "origin")

    @property
    def head(self) -> str:
        """The branch's newest commit. Raises ConfigError when there is no such branch."""
        try:
            return self._git("rev-parse", "--verify", "--quiet", f"refs/remotes/origin/{self.branch}")
        except MinipcError:
            raise ConfigError(
                f"{self._url} has no branch {self.branch}", "create it as docs/howto/release.md describes"
            ) from None

    def commit(self, name: str) -> Commit:
        """Return a commit by hash, tag or branch.

        Raises:
            ConfigError: there is none.
        """
        try:
            found = self._git("log", "-1", "--format=%H%x00%cI%x00%an%x00%s", f"{name}^{{commit}}", "--")
        except MinipcError:
            raise ConfigError(
                f"{self._url} has no commit {name}", "`minipc release status` lists recent commits"
            ) from None
        return Commit(*found.split("\0"))

    def has(self, commit: str) -> bool:
        """Whether there is such a commit."""
        return self.contains(commit, commit)

    def last_change(self, path: str, until: str) -> Commit:
        """Return the newest commit up to `until` that changed something below `path`. Raises ConfigError."""
        found = self._git("log", "-1", "--format=%H", until, "--", path)
        return self.commit(found or until)

    def between(self, older: str, newer: str, path: str) -> list[Commit]:
        """Return the commits in `newer` that are not in `older` and change something below `path`, newest first."""
        return [self.commit(each) for each in self._git("rev-list", f"{older}..{newer}", "--", path).split()]

    def tree(self, commit: str) -> Tree:
        """Return the files of a commit. Raises RefusedError if there are too many, MinipcError if git fails."""
        return read(self._directory, commit)

    def contains(self, older: str, newer: str) -> bool:
        """Whether one commit is the other one, or comes before it; False when either is not there."""
        try:
            self._git("merge-base", "--is-ancestor", older, newer)
        except MinipcError:
            return False
        return True

    def admit(self, commit: str) -> None:
        """Check that a commit may be synced: it comes after everything approved, and all since then is signed.

        All of it, and not the newest commit alone: who signs that one, a program perhaps, has built on the others.

        Raises:
            RefusedError: it may not; says why, and what to do.
            CouldNotVerifyError: a program is missing.
        """
        pins = self.trust.approvals.commits()
        if not pins:
            self.trust.approvals.of("this repository")
        for name, pin in pins.items():
            if not self.contains(pin, commit):
                raise RefusedError(
                    f"commit {commit[:12]} is not based on {pin[:12]}, the commit that was approved last for {name}: "
                    f"the history of {self._url} was rewritten, or an older state was restored",
                    "find out who pushed it. To go back: `minipc release rollback`. To repair the branch: push the "
                    f"approved commit again ({self._directory} has it). If you rewrote history yourself: "
                    "run `minipc release pin`, which shows everything and asks you",
                )
        for each in self._git("rev-list", commit, *(f"^{pin}" for pin in set(pins.values())), "--").split():
            signing.verify(self._directory, each, self.trust.signers)

    def admit_approved(self, application: str) -> str:
        """Return the commit that a person approved for an application, after checking its signature.

        Raises:
            RefusedError: there is none, the repository does not have it, or nobody who may sign has signed it.
        """
        pin = self.trust.approvals.of(application)
        # Our clone may have it from before; ArgoCD finds it only where the branch leads to it.
        if not self.contains(pin, self.head):
            raise RefusedError(
                f"the branch {self.branch} of {self._url} does not contain commit {pin[:12]}, which was approved last "
                f"for {application}: its history was rewritten",
                f"push that commit from a clone that has it (`git push --force {self._url} {pin[:12]}:{self.branch}`)",
            )
        signing.verify(self._directory, pin, self.trust.signers, now=False)
        return pin

    def same(self, one: str, other: str, path: str) -> bool:
        """Whether two commits have the same content below a path; not if one of them has nothing there."""
        found = [self._git("ls-tree", commit, "--", path) for commit in (one, other)]
        return bool(found[0]) and found[0] == found[1]

    def released(self, environment: str, service: str) -> list[Commit]:
        """Desired states of a service that were released, newest first; one that was released twice is in it twice."""
        pattern = f"refs/tags/{RELEASED}/{environment}/{service}/*"
        tags = self._git("for-each-ref", "--sort=-refname", "--format=%(refname)", pattern).split()
        return [self.commit(tag) for tag in tags]

    def mark_released(self, environment: str, service: str, commit: str, stamp: str) -> None:
        """Tags a desired state of a service that was released; stamp: UTC, such as 20261121T143000Z.

        Raises:
            CouldNotVerifyError: the repository cannot be written.
        """
        # A rebuild releases several services at once; git takes one fetch at a time.
        with self._lock:
            self._remote("push", "--quiet", "origin", f"{commit}:refs/tags/{RELEASED}/{environment}/{service}/{stamp}")
            self._remote("fetch", "--quiet", "--tags", "--force", "origin")

    def restore(self, earlier: str, path: str, message: str) -> str:
        """Commit an earlier state of one folder on top of the branch, sign and push it. Returns the commit.

        All other folders stay as they are: other services are not rolled back with this one.

        Raises:
            MinipcError: the earlier commit has no such folder.
            CouldNotVerifyError: someone else pushed meanwhile, or we may not.
            SecretError: there is no key to sign with.
        """
        self._git("read-tree", self.head, environment=self._index)
        self._git("rm", "-r", "--cached", "--quiet", "--ignore-unmatch", "--", path, environment=self._index)
        self._git("read-tree", f"--prefix={path}/", f"{earlier}:{path}", environment=self._index)
        return self._commit(self._git("write-tree", environment=self._index), message)

    def write(self, path: str, content: str, message: str) -> str:
        """Commit one file on top of the branch, sign and push it. Returns the commit, or the head if nothing changes.

        Raises:
            CouldNotVerifyError: someone else pushed meanwhile, or we may not.
            SecretError: there is no key to sign with.
        """
        tree = self._tree_with({path: content.encode()}, self.head)
        return self.head if tree == self._git("rev-parse", f"{self.head}^{{tree}}") else self._commit(tree, message)

    def replace(self, files: Files, message: str) -> str:
        """Has the branch hold exactly these files, in a signed commit; returns it, the head if nothing changes.

        Raises:
            CouldNotVerifyError: the repository can't be written.
            SecretError: there is no key to sign with.
        """
        tree = self._tree_with(files, "")
        if self.has_branch() and tree == self._git("rev-parse", f"{self.head}^{{tree}}"):
            signing.verify(self._directory, self.head, self.trust.signers)
            return self.head
        return self._commit(tree, message)

    def approve(self) -> str:
        """Signs the head as it is, by a commit that changes nothing, and pushes that; returns it. Raises as `write`."""
        return self._commit(self._git("rev-parse", f"{self.head}^{{tree}}"), f"Approve {self.head[:12]}")

    def _tree_with(self, files: Files, start: str) -> str:
        """Return the hash of a tree: that of a commit, or an empty one, with these files in it."""
        index = self._index
        self._git("read-tree", start or "--empty", environment=index)
        for path, content in files.items():
            blob = self._git("hash-object", "-w", "--no-filters", "--stdin", stdin=content)
            self._git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", environment=index)
        return self._git("write-tree", environment=index)

    @property
    def _index(self) -> Mapping[str, str]:
        """Return the variable that names an index of our own, in place of the clone's."""
        return {"GIT_INDEX_FILE": str(self._directory / ".git" / "minipc-index")}

    def _commit(self, tree: str, message: str) -> str:
        parent = self.head if self.has_branch() else ""
        key = signing.signing_key(self.trust.environment)
        made = signing.commit(self._directory, tree, parent, message, key)
        self._remote("push", "--quiet", "origin", f"{made}:refs/heads/{self.branch}")
        self._remote("fetch", "--quiet", "origin")
        return made

    def has_branch(self) -> bool:
        """Return whether anything was ever pushed to the branch."""
        return bool(self._git("branch", "--remotes", "--list", f"origin/{self.branch}"))

    def _remote(self, *argv: str) -> None:
        try:
            self._git(*argv)
        except MinipcError as error:
            raise CouldNotVerifyError(
                f"the deploy repository {self._url}: {error.what}", "check the URL and your access to it"
            ) from None

    def _git(self, *argv: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> str:
        more = self._environment | dict(environment or {})
        return git.run(self._directory, *argv, stdin=stdin, environment=more).decode(errors="replace").strip()


def trust_of(target: Target) -> Trust:
    """Who may sign for a mini PC's deploy repository, and what of it was approved last."""
    environment = target.settings.where
    return Trust(environment, signing.signers_file(environment), approvals.of_machine(target))


def open_repository(target: Target, application: Application, address: str | None = None) -> Repository:
    """Return the deploy repository of a machine, with a clone in the state directory.

    Args:
        address: where the operator reaches it; None: on the off-site machine where that hosts it, else where ArgoCD
            does.

    Raises:
        ConfigError: `backups_offsite` names a machine that the inventory hasn't.
        CouldNotVerifyError: it can't be reached.
    """
    directory, trust = state_dir("deploy-repository") / target.alias, trust_of(target)
    offsite = None
    if address is None and target.settings.argocd.repository is None:
        offsite = offsite_target(target.settings.where, target)
    if offsite:
        remote = operator_remote(offsite)
        return Repository(remote.url, directory, application.branch, trust, remote.environment)
    return Repository(address or application.repository, directory, application.branch, trust)
