"""The files that describe a run, written into its directory before step 1.

A resumed start writes them once the checkpoint has accepted its configuration, so that a refused
one changes nothing.
"""

from __future__ import annotations

import shutil

from wikillm.config.load import Resolved, to_yaml
from wikillm.core.files import write_atomic, write_json
from wikillm.data.read.corpus import Corpus
from wikillm.observe.redact import without_queries
from wikillm.plan.run_plan import Plan
from wikillm.train.engine import Engine
from wikillm.train.run_dir import RunDir, describe_environment


def write_start_records(
    run: RunDir, resolved: Resolved, plan: Plan, engine: Engine, corpus: Corpus
) -> None:
    """Write the configuration, the plan, the environment and the data of this start. (rank 0)"""
    write_atomic(run.path / "config.resolved.yaml", without_queries(to_yaml(resolved)))
    write_json(run.path / "plan.json", plan.to_json())
    write_json(run.path / "environment.json", describe_environment())
    if engine.json is not None:
        write_json(run.path / "ds_config.resolved.json", engine.json)
    write_data_record(run, corpus)


def write_data_record(run: RunDir, corpus: Corpus) -> None:
    """Write data.json and a copy of the tokenizer: a run can be exported without its store.

    (rank 0)
    """
    write_json(run.path / "data.json", corpus.describe())
    shutil.copytree(corpus.tokenizer_dir, run.path / "tokenizer", dirs_exist_ok=True)
