"""Makes one readable line of OpenVINO's exceptions, which are many lines of C++ places with the
reason at their end.
"""

from __future__ import annotations

import re

_PLACE = re.compile(r"^(\[\d\d:\d\d:\d\d\] )?\S+\.(cc|cpp|hpp|h):\d+: ")


def reason_of(error: BaseException) -> str:
    """The last line that says something, without the place in OpenVINO's sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _PLACE.sub("", lines[-1]) if lines else type(error).__name__
