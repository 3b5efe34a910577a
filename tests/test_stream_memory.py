"""A stream takes no more memory the longer it lasts."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_a_stream_of_a_minute_takes_no_more_memory_in_the_end() -> None:
    spec = importlib.util.spec_from_file_location("stream_benchmark", ROOT / "benchmarks/stream.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = benchmark.memory_over(frames=10**9, seconds=60)
    assert found["megabytes_per_10000_frames"] is not None, f"only {found['frames']} frames went through"
    assert found["megabytes_per_10000_frames"] < 1, found
