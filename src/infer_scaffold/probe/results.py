"""Answers as text, JSON, JUnit's XML, or a page for the owner of a service."""

import datetime
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import typer
from jinja2 import Environment

from infer_scaffold.checklist import BY_CODE, PAGES
from infer_scaffold.probe.answers import Answer
from infer_scaffold.probe.outcomes import CannotBeAsked, Verdict
from infer_scaffold.visible import visible

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.ERROR: "yellow"}
_PAGE = Path(__file__).with_name("probe.html.jinja")


def exit_code(answers: Sequence[Answer]) -> int:
    """Return 0 if what was asked is as wanted, and 3 if nothing was asked, or not all could be."""
    verdicts = {answer.verdict for answer in answers}
    if Verdict.FAIL in verdicts:
        return 1
    asked = Verdict.PASS in verdicts and Verdict.ERROR not in verdicts
    return 0 if asked else CannotBeAsked.exit_code


def to_text(answers: Sequence[Answer]) -> str:
    """Return the summary, then what is not as wanted in detail, then all else."""
    unwanted = [answer for answer in answers if answer.is_unwanted]
    others = [answer for answer in answers if not answer.is_unwanted]
    parts = [[_head(answer), *_details(answer)] for answer in unwanted]
    parts.append([line for answer in others for line in (_head(answer), *_details(answer))])
    blocks = [[summary(answers)], *filter(None, parts)]
    return "\n\n".join("\n".join(block) for block in blocks)


def _head(answer: Answer) -> str:
    question = answer.question
    verdict = typer.style(f"{answer.verdict:<5}", fg=_COLOURS.get(answer.verdict))
    return f"{question.code}  {verdict}  {question.name:<20}  {question.holds}"


def _details(answer: Answer) -> list[str]:
    if answer.verdict is Verdict.FAIL:
        return [
            f"    request  {visible(answer.request)}",
            f"    got      {visible(answer.got)}",
            f"    wanted   {visible(answer.wanted)}",
        ]
    if answer.verdict is Verdict.ERROR:
        return [f"    could not be asked: {visible(answer.reason)}"]
    return [f"    not asked: {visible(answer.reason)}"] if answer.reason else []


def summary(answers: Sequence[Answer]) -> str:
    """Return how many questions went well, and the names of those that did not."""
    counts = Counter(answer.verdict for answer in answers)
    asked = counts[Verdict.PASS] + counts[Verdict.FAIL]
    parts = [f"{counts[Verdict.PASS]} of {asked} answers are as wanted"]
    if errors := counts[Verdict.ERROR]:
        parts.append(f"{errors} question{'s' if errors != 1 else ''} could not be asked")
    if skips := counts[Verdict.SKIP]:
        parts.append(f"{skips} question{'s do' if skips != 1 else ' does'} not apply")
    names = [answer.question.name for answer in answers if answer.is_unwanted]
    return ", ".join(parts) + (f". Look at {', '.join(names)}." if names else ".")


def to_json(url: str, answers: Sequence[Answer], error: str | None = None) -> str:
    """Return a document with one object an answer, or with the error that there is none."""
    document = {
        "url": url,
        "error": error,
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


def to_junit(url: str, answers: Sequence[Answer], error: str | None = None) -> str:
    """Return a test suite with one case an answer, or one with the error that there is none."""
    counts = Counter(answer.verdict for answer in answers)
    suite = ET.Element(
        "testsuite",
        name=_legal(f"infer-scaffold probe {url}"),
        tests=str(len(answers) + (error is not None)),
        failures=str(counts[Verdict.FAIL]),
        errors=str(counts[Verdict.ERROR] + (error is not None)),
        skipped=str(counts[Verdict.SKIP]),
        time=f"{sum(answer.seconds for answer in answers):.3f}",
    )
    if error is not None:
        case = ET.SubElement(suite, "testcase", classname="probe", name="discovery", time="0")
        ET.SubElement(case, "error", message=_legal(error))
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
        elif answer.verdict is Verdict.ERROR:
            ET.SubElement(case, "error", message=_legal(answer.reason))
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


def to_html(
    url: str, answers: Sequence[Answer], today: datetime.date, error: str | None = None
) -> str:
    """Return one page that needs nothing besides itself, and runs nothing."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_visible_text
    )
    page = environment.from_string(_PAGE.read_text(encoding="utf-8"))
    return page.render(
        url=url,
        today=today,
        summary=error or summary(answers),
        unwanted=[answer for answer in answers if answer.is_unwanted],
        others=[answer for answer in answers if not answer.is_unwanted],
        patterns=BY_CODE,
        pages=PAGES,
    )


def _visible_text(value: object) -> object:
    """Spell out what does not print; it may be markup that turns the direction of a page."""
    return visible(value) if isinstance(value, str) else value
