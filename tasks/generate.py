"""The Celery task that a ticket calls, and the ticket itself.

A ticket says only "there is work for this model": no job id, no prompt, so Flower and the broker never see either. The
scripts push tickets, so the message is built here once, by Celery's own serialiser, with two placeholders.
"""

from __future__ import annotations

import base64
import json

from celery import Celery

NAME = "penstock.generate"


def ticket_template() -> str:
    """The broker message of one ticket as JSON, with @TASK@ for the task id and @MODEL@ for the model."""
    app = Celery("penstock", set_as_current=False)  # type: ignore[no-untyped-call]
    message = app.amqp.as_task_v2("@TASK@", NAME, args=("@MODEL@",), kwargs={}, origin="penstock", ignore_result=True)
    body = json.dumps([[], {}, message.body[2]])  # the body has no argument: base64 would hide a placeholder
    properties = message.properties | {
        "delivery_info": {"exchange": "", "routing_key": "penstock.@MODEL@"},
        "delivery_mode": 2,
        "delivery_tag": "@TASK@",
        "priority": 0,
        "body_encoding": "base64",
    }
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": dict(message.headers),
            "properties": properties,
        }
    )
