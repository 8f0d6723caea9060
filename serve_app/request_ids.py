"""The form of the ids of requests and jobs. Ray's proxy imports this, so that it imports nothing itself."""

import re

REQUEST_ID = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}")
