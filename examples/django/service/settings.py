"""The settings of the project."""

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "only for this example")
DEBUG = os.environ.get("DEBUG") == "1"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
INSTALLED_APPS = ["tcm_sync.integrations.django"]
MIDDLEWARE = ["tcm_sync.integrations.django.middleware.TcmMiddleware"]
ROOT_URLCONF = "service.urls"
WSGI_APPLICATION = "service.wsgi.application"
USE_TZ = True

TCM = {
    "default": {
        "uri": os.environ["TCM_WS_URI"],
        "token": os.environ.get("TCM_CLIENT_TOKEN"),
        "container_id": os.environ.get("TCM_CONTAINER_ID", "local"),
    },
}
TCM_REQUEST_TIMEOUT = 20
