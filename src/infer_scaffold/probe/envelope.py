"""OpenAI's errors: `{"error": {"message", "type", "param", "code"}}`, whatever the status."""

from typing import Any

from infer_scaffold.probe.target import Reply

_KEYS = {"message", "type", "param", "code"}
_WANTED = 'a body {"error": {"message", "type", "param", "code"}}, which OpenAI\'s clients show'


def require(reply: Reply, *statuses: int) -> dict[str, Any]:
    """Return the error of a reply. Raises Unmet if the status or the form is another one."""
    if reply.status not in statuses:
        wanted = f"status {' or '.join(map(str, statuses))} and {_WANTED}"
        raise reply.unmet(wanted)
    body = reply.json()
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not error.keys() >= _KEYS:
        raise reply.unmet(_WANTED)
    if not isinstance(error["message"], str) or not error["message"]:
        raise reply.unmet("an error whose message says what is wrong")
    return error
