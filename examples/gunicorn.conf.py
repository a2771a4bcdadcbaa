"""Settings of gunicorn for the examples of Flask and Django.

::

    cd examples/flask && gunicorn --config ../gunicorn.conf.py service:app
    cd examples/django && gunicorn --config ../gunicorn.conf.py service.wsgi
"""

import os

bind = os.environ.get("BIND", "127.0.0.1:8080")
worker_class = "gthread"
workers = 2
threads = 4
preload_app = True  # the client may be made before the fork
max_requests = 10_000
max_requests_jitter = 1_000
# TCM_REQUEST_TIMEOUT is 20 s, after which a call ends with an error that the service can answer.
timeout = 30
graceful_timeout = 25
