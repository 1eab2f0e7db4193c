"""What all clusters of these tests share."""

from __future__ import annotations

import os

# Ray's workers would run at the lowest priority, and wait for whatever else a busy machine does.
os.environ.setdefault("RAY_worker_niceness", "0")
