"""The command that the launcher prints: a request for the served model, to paste into a shell."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

MAX_INLINE = 800
"""Most characters of a row in the command; a longer row goes into a file."""

ROW_FILE = "row.json"


def command(url: str, row: Any, *, needs_key: bool, folder: Path, proxied: bool = False) -> str:
    """The curl command that sends `row`.

    A row of more than MAX_INLINE characters goes into a file in `folder`. The row is quoted for the shell, because names of columns
    come from a table. With `proxied`, curl bypasses proxies. Raises OSError when the file cannot be written.
    """
    body = json.dumps(row)
    data = shlex.quote(body)
    if len(data) > MAX_INLINE:
        file = folder / ROW_FILE
        file.write_text(body)
        data = shlex.quote(f"@{file}")
    key = ' -H "X-API-Key: $API_KEY"' if needs_key else ""
    direct = " --noproxy '*'" if proxied else ""
    return f"curl{direct} {url}/predict{key} -H 'Content-Type: application/json' -d {data}"
