"""A Snakemake logger plugin that writes the jobs of a run to $JOBS, one JSON line each."""

import json
import os
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent


class LogHandler(LogHandlerBase):
    """Takes every job's rule, wildcards and reason, a dry run's too."""

    writes_to_stream = False
    writes_to_file = False
    # Its own filter, so that Snakemake adds none that would drop events.
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def emit(self, record: LogRecord) -> None:
        """Write the line of a job's event; other events are of no interest."""
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            wildcards = dict(getattr(record, "wildcards", None) or {})
            line = {"rule": record.rule_name, "wildcards": wildcards, "reason": record.reason}
            with Path(os.environ["JOBS"]).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
