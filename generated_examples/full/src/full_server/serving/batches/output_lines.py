"""The lines of the files that a batch writes."""

import json
import uuid

from .inner_app import InnerAnswer


def answered_line(custom_id: str, answer: InnerAnswer) -> bytes:
    """The line of a request that was answered, with success or with an error."""
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": None}
    document = json.dumps({**line_head(custom_id), "response": response, "error": None})
    before, _, after = document.rpartition('"body": null')
    # As it is: parsing thousands of vectors takes seconds.
    return b'%s"body": %s%s' % (before.encode(), body_of(answer), after.encode())


def unanswered_line(custom_id: str, code: str, message: str) -> bytes:
    """The line of a request that got no answer."""
    error = {"code": code, "message": message}
    return json.dumps({**line_head(custom_id), "response": None, "error": error}).encode()


def line_head(custom_id: str) -> dict[str, str]:
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id}


def body_of(answer: InnerAnswer) -> bytes:
    """The body as JSON in one line."""
    if "json" in answer.headers.get("content-type", ""):
        return answer.body.replace(b"\n", b" ").replace(b"\r", b" ")
    return json.dumps(answer.body.decode(errors="replace")).encode()
