"""Reports of the tests' small trainings without their charts, which take longer to draw than the trainings themselves.

``tests/display`` draws them all, and the quickstart's report in ``tests/cli/test_train.py`` has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from markupsafe import Markup

from kdstream.display.charts import Chart, Plotter
from kdstream.display.report import write_report
from kdstream.training import job


def install() -> None:
    """For all trainings of this process."""
    job.write_report = _write


def _write(*arguments: Any) -> Path:
    with patch.object(Plotter, "_figure", lambda self, title, note, draw: Chart(title, note, Markup(""))):
        return write_report(*arguments)
