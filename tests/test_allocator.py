"""The command line keeps freed memory, and leaves alone who says otherwise."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from clipwise.allocator import freed_memory_is_kept, keep_freed_memory
keep_freed_memory()
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**25)  # 256 MB, and free again
before = faults()
for _ in range(5):
    np.ones(2**25)
print(freed_memory_is_kept(), faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="needs glibc")
@pytest.mark.parametrize(
    ("told", "kept"),
    [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, False)],
)
def test_pages_are_mapped_once(told: dict[str, str], kept: bool) -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", CODE], env=plain | told, capture_output=True, text=True, check=True)
    said, faults = done.stdout.split()
    assert said == str(kept)
    assert (int(faults) < 500) == kept  # each of the five has 65,536 pages, or 128 huge ones
