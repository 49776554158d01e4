"""Print a pip.conf with the settings that pip on this machine needs to reach its index.

The file is for pip in another environment, so directories of this machine are omitted. Standard
library only: any Python with pip can run it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys

KEYS = {"cert", "index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout"}


def settings() -> dict[str, str]:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    keep: dict[str, str] = {}
    for line in listed.stdout.splitlines():  # first the variables, which override the files
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        words = [word for word in ast.literal_eval(value).split() if not word.startswith("file:")]
        if key in KEYS and words:
            keep.setdefault(key.removeprefix("default-"), " ".join(words))
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.environ.get(name):
            keep.setdefault("cert", os.environ[name])
    return keep


if __name__ == "__main__":
    print("[global]", *(f"{key} = {value}" for key, value in settings().items()), sep="\n")
