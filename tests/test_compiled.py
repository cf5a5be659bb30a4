"""Functions of C in compiled code: found anew in each process, missed with a clear sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from applecider_batch.compiled import CFunction
from applecider_batch.errors import UserError

PROGRAM = """
import functools
import sys
from typing import Any
import numpy as np
from applecider_batch.compiled import CFunction, compiled

CRC32: Any = CFunction("deflate._deflate", "libdeflate_crc32", "uint32(uint32, uintp, uintp)")


@functools.partial(compiled, calls=(CRC32,))
def check(data):
    return CRC32(np.uint32(0), data.ctypes.data, np.uint64(len(data)))


if __name__ == "__main__":
    print(check(np.frombuffer(b"abc", np.uint8)))
"""


def test_code_from_the_cache_finds_the_function_in_a_new_process(tmp_path: Path) -> None:
    program, kept = tmp_path / "program.py", tmp_path / "cache"
    program.write_text(PROGRAM)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(kept)}
    files = []
    for _ in range(2):
        line = [sys.executable, str(program)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == zlib.crc32(b"abc")
        files.append({path: path.stat().st_mtime_ns for path in kept.rglob("*.nb[ci]")})
    assert files[0] == files[1] != {}


@pytest.mark.parametrize(
    ("module", "symbol"),
    [("deflate._deflate", "no_such_function"), ("deflate.absent", "f"), ("absent_package.module", "f")],
)
def test_a_function_that_is_not_there_is_named_with_its_package(module: str, symbol: str) -> None:
    package = module.partition(".")[0]
    message = (
        rf"The package '{package}' as it is installed has no {symbol} to call \(.+\)\. Install its wheel"
    )
    with pytest.raises(UserError, match=message):
        CFunction(module, symbol, "int32()").link()
