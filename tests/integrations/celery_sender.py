"""Sends tasks by name, as a program without their code does: ``celery_sender.py URL``, JSON in and out."""

from __future__ import annotations

import json
import sys

from celery import Celery

from tcm_sync import TcmError

app = Celery(broker=sys.argv[1], backend=sys.argv[1])
asked = [app.send_task(name, args) for name, *args in json.load(sys.stdin)]
outcomes = []
for each in asked:
    try:
        outcomes.append(each.get(timeout=30))
    except TcmError as error:
        kind = type(error).__name__
        outcomes.append({"error": kind, "text": str(error), "code": error.code, "retriable": error.retriable})
json.dump(outcomes, sys.stdout)
