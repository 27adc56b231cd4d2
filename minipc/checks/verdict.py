"""Where it is broken: of all answers that are a no, the ones that no other explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minipc.checks.asking import Answer, Reading
from minipc.checks.schema import Check, Checks
from minipc.wording import duration

# How a request travels, then what feeds it; the order in which triage walks.
LAYERS: tuple[tuple[str, str], ...] = (
    ("edge", "the public door"),
    ("runtime", "the service's process"),
    ("data", "database and cache"),
    ("collection", "the workers"),
    ("client", "between users and the machine"),
    ("machine", "the machine itself"),
    ("recovery", "what brings the data back"),
)
WHERE = dict(LAYERS)


@dataclass(frozen=True)
class Verdict:
    """What triage found.

    Attributes:
        causes: bad answers that no other bad answer explains, the most urgent first.
        effects: bad answers that one of the causes explains.
        unknown: questions without an answer.
    """

    causes: tuple[Answer, ...]
    effects: tuple[Answer, ...]
    unknown: tuple[Answer, ...]

    @property
    def sentence(self) -> str:
        """One sentence: where it is broken, the evidence, the next command."""
        if self.causes:
            return _blame(self.causes[0])
        if self.unknown:
            names = ", ".join(answer.check.id for answer in self.unknown)
            return f"Nothing is known to be broken, but these questions got no answer: {names}; next: `minipc verify`."
        return "Nothing is broken: every question was answered with yes."


def judge(checks: Checks, answers: Mapping[str, Answer]) -> Verdict:
    """The verdict on these answers, by question."""
    bad = [answers[check.id] for check in checks.checks if check.id in answers and answers[check.id].bad]
    names = {answer.check.id for answer in bad}
    effects = [answer for answer in bad if checks.explanations(answer.check.id) & names]
    causes = [answer for answer in bad if answer not in effects]
    unknown = [answer for answer in answers.values() if answer.unknown]
    return Verdict(tuple(sorted(causes, key=lambda answer: answer.check.priority)), tuple(effects), tuple(unknown))


def _blame(answer: Answer) -> str:
    check, bad = answer.check, answer.bad
    names = ", ".join(reading.name for reading in bad if reading.name)
    who = f" ({names})" if names else ""
    evidence = ", ".join(shown(check, reading) for reading in bad)
    return (
        f"Broken: {WHERE[check.layer]}{who}: {check.meaning.rstrip('.')}; evidence: {check.id} = {evidence}, "
        f"bad when {check.bad_when}; next: {what_next(check, bad)}"
    )


def what_next(check: Check, bad: Sequence[Reading] = ()) -> str:
    """The next step, with the name of what fails."""
    return check.next.replace("{each}", bad[0].name if bad else check.placeholder)


def shown(check: Check, reading: Reading) -> str:
    """A value as a person reads it."""
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
    """The reading nearest to being bad."""
    below = check.operator in ("<", "<=", "==")
    return sorted(readings, key=lambda reading: reading.value if below else -reading.value)[0]
