"""Find the cause of a fault: the failing checks that no other failing check explains."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from minipc.checks.asking import Answer, Reading
from minipc.checks.schema import Check, Checks
from minipc.core.formatting import duration

# The path of a request, then what supplies its data: the order of triage.
LAYERS: tuple[tuple[str, str], ...] = (
    ("edge", "the public ingress"),
    ("runtime", "the services' processes"),
    ("data", "database, cache and volumes"),
    ("collection", "what the services measure and collect"),
    ("client", "the network between users and the machine"),
    ("machine", "the machine itself"),
    ("recovery", "backups and restore drills"),
)
WHERE = dict(LAYERS)


@dataclass(frozen=True)
class Verdict:
    """The result of triage.

    Attributes:
        causes: bad answers that no other bad answer explains, most urgent first.
        effects: bad answers that a cause explains.
        unknown: questions without an answer.
    """

    causes: tuple[Answer, ...]
    effects: tuple[Answer, ...]
    unknown: tuple[Answer, ...]

    @property
    def sentence(self) -> str:
        """Return one sentence: the location of the fault, the evidence, the next command."""
        if self.causes:
            return _blame(self.causes[0])
        if self.unknown:
            names = ", ".join(answer.check.id for answer in self.unknown)
            return f"No fault was found, but these questions could not be answered: {names}; next: `minipc verify`."
        return "Nothing is broken: the answer to every question is yes."


def judge(checks: Checks, answers: Mapping[str, Answer]) -> Verdict:
    """Return the verdict on the answers. A fault of one service does not explain one of another service."""
    bad = [answers[check.id] for check in checks.checks if check.id in answers and answers[check.id].bad]
    causes, effects = [], []
    for answer in bad:
        explaining = [each for each in bad if each.check.id in checks.explanations(answer.check.id)]
        left = tuple(reading for reading in answer.bad if not _explained(answer.check, reading, explaining))
        if left:
            causes.append(answer if left == answer.bad else replace(answer, readings=left))
        if len(left) < len(answer.bad):
            explained = tuple(reading for reading in answer.bad if reading not in left)
            effects.append(replace(answer, readings=explained) if left else answer)
    unknown = [answer for answer in answers.values() if answer.unknown]
    return Verdict(tuple(sorted(causes, key=lambda answer: answer.check.priority)), tuple(effects), tuple(unknown))


def _explained(check: Check, reading: Reading, explaining: Sequence[Answer]) -> bool:
    """Return True if one of the bad answers explains a reading: it is about the machine, or the same service."""
    service = check.service_of(reading.name)
    return any(
        not service or (each.check.service_of(other.name) in ("", service)) for each in explaining for other in each.bad
    )


def _blame(answer: Answer) -> str:
    check, bad = answer.check, answer.bad
    names = ", ".join(name for reading in bad if (name := check.name_of(reading.name)))
    who = f" ({names})" if names else ""
    evidence = ", ".join(shown(check, reading) for reading in bad)
    return (
        f"Broken: {WHERE[check.layer]}{who}: {check.meaning.rstrip('.')}; evidence: {check.id} = {evidence}, "
        f"bad when {check.bad_when}; next: {what_next(check, bad)}"
    )


def what_next(check: Check, bad: Sequence[Reading] = ()) -> str:
    """Return the next step, with the name of what fails, quoted for a shell: a service may have chosen it."""
    name = bad[0].name if bad else check.placeholder
    # What a program adds to a name, such as " (CrashLoopBackOff)", is for people.
    thing = shlex.quote(name.split(" (")[0] if check.per else name) if bad else name
    service = check.owner or (check.service_of(name) if bad else "SERVICE")
    return check.next.replace("{each}", thing).replace("{service}", shlex.quote(service))


def shown(check: Check, reading: Reading) -> str:
    """Return a value with its unit, for a person."""
    match check.unit:
        case "boolean":
            text = "yes" if reading.value else "no"
        case "seconds":
            text = duration(reading.value)
        case "ratio":
            text = f"{reading.value:.0%}"
        case "per minute":
            text = f"{reading.value:.3g}/min"
        case _:
            text = f"{reading.value:.6g}"
    return f"{reading.name}: {text}" if reading.name else text


def worst(check: Check, readings: Sequence[Reading]) -> Reading:
    """Return the reading that is closest to being bad."""
    below = check.operator in ("<", "<=", "==")
    return sorted(readings, key=lambda reading: reading.value if below else -reading.value)[0]
