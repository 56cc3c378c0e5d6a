"""Answers as text, JSON, or JUnit's XML."""

import json
from collections import Counter
from collections.abc import Iterable
from xml.etree import ElementTree as ET

import typer

from infer_scaffold.probe.answers import Answer
from infer_scaffold.probe.outcomes import Verdict
from infer_scaffold.visible import visible

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red"}


def to_text(answer: Answer) -> str:
    """Return an answer in a line; of one that failed also what was sent, came and was wanted."""
    question = answer.question
    verdict = typer.style(f"{answer.verdict:<4}", fg=_COLOURS.get(answer.verdict))
    lines = [f"{question.code}  {verdict}  {question.name:<20}  {question.holds}"]
    if answer.verdict is Verdict.FAIL:
        lines += [
            f"    request  {visible(answer.request)}",
            f"    got      {visible(answer.got)}",
            f"    wanted   {visible(answer.wanted)}",
        ]
    if answer.reason:
        lines.append(f"    not asked: {visible(answer.reason)}")
    return "\n".join(lines)


def score(answers: Iterable[Answer]) -> str:
    """Return how many questions went well."""
    counts = Counter(answer.verdict for answer in answers)
    asked = counts[Verdict.PASS] + counts[Verdict.FAIL]
    text = f"{counts[Verdict.PASS]} of {asked} answers are as wanted"
    return (
        f"{text}, {counts[Verdict.SKIP]} questions do not apply."
        if counts[Verdict.SKIP]
        else f"{text}."
    )


def to_json(url: str, answers: Iterable[Answer]) -> str:
    """Return a document with one object an answer."""
    document = {
        "url": url,
        "answers": [
            {
                "code": answer.question.code,
                "name": answer.question.name,
                "holds": answer.question.holds,
                "verdict": str(answer.verdict),
                "seconds": round(answer.seconds, 3),
                "request": answer.request,
                "got": answer.got,
                "wanted": answer.wanted,
                "reason": answer.reason,
            }
            for answer in answers
        ],
    }
    return json.dumps(document, indent=2)


def to_junit(url: str, answers: list[Answer]) -> str:
    """Return a test suite with one case an answer."""
    counts = Counter(answer.verdict for answer in answers)
    suite = ET.Element(
        "testsuite",
        name=_legal(f"infer-scaffold probe {url}"),
        tests=str(len(answers)),
        failures=str(counts[Verdict.FAIL]),
        errors="0",
        skipped=str(counts[Verdict.SKIP]),
        time=f"{sum(answer.seconds for answer in answers):.3f}",
    )
    for answer in answers:
        question = answer.question
        case = ET.SubElement(
            suite,
            "testcase",
            classname=question.code,
            name=question.name,
            time=f"{answer.seconds:.3f}",
        )
        if answer.verdict is Verdict.FAIL:
            failure = ET.SubElement(case, "failure", message=question.holds)
            failure.text = _legal(
                f"request: {answer.request}\ngot: {answer.got}\nwanted: {answer.wanted}"
            )
        elif answer.verdict is Verdict.SKIP:
            ET.SubElement(case, "skipped", message=_legal(answer.reason))
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True)


def _legal(text: str) -> str:
    """Without the characters that XML has no way to write."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )
