"""Reports: what a training run's folder holds, as one page that one would show."""

from __future__ import annotations

from theano_mgpu.report.machine import describe_machine
from theano_mgpu.report.page import write_report

__all__ = ["describe_machine", "write_report"]
