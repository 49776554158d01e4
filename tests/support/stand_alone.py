"""Run a Python snippet as a program, with top-level ``await``, as ``python -m asyncio`` does.

python stand_alone.py FILE
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from pathlib import Path
from types import FunctionType


def main() -> None:
    file = Path(sys.argv[1])
    code = compile(file.read_text(), file, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {"__name__": "__main__", "__file__": str(file)}
    sys.path[0] = str(file.parent)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(FunctionType(code, names)())
    else:
        exec(code, names)


if __name__ == "__main__":
    main()
