"""The name that model cards and reports give the host."""

from pathlib import Path

from worker.hardware import _processor, hardware_name


def test_the_kernels_name_of_the_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3GHz \nprocessor\t: 1\n")
    assert _processor(cpuinfo) == "Fast CPU @ 3GHz"
    cpuinfo.write_text("nothing of the kind")
    assert _processor(cpuinfo) == _processor(tmp_path / "missing")
    assert hardware_name()
