"""The files that describe a run, written into its directory before step 1.

A resumed start writes them once the checkpoint has accepted its configuration, so that a refused
one changes nothing.
"""

from __future__ import annotations

import shutil

from wikillm.config.load import to_yaml
from wikillm.core.files import write_atomic, write_json
from wikillm.observe.redact import without_queries
from wikillm.train.context import PlannedRun
from wikillm.train.run_dir import describe_environment


def write_start_records(planned: PlannedRun) -> None:
    """Write the configuration, the plan, the environment and the data of this start. (rank 0)"""
    folder = planned.run.path
    write_atomic(folder / "config.resolved.yaml", without_queries(to_yaml(planned.resolved)))
    write_json(folder / "plan.json", planned.plan.to_json())
    write_json(folder / "environment.json", describe_environment())
    if planned.engine.json is not None:
        write_json(folder / "ds_config.resolved.json", planned.engine.json)
    write_data_record(planned)


def write_data_record(planned: PlannedRun) -> None:
    """Write data.json and a copy of the tokenizer: a run can be exported without its store."""
    folder = planned.run.path
    write_json(folder / "data.json", planned.corpus.describe())
    shutil.copytree(planned.corpus.tokenizer_dir, folder / "tokenizer", dirs_exist_ok=True)
