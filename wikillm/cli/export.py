"""`wikillm export RUN|CHECKPOINT`: a standard Hugging Face folder."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.checkpoints.latest import find_complete
from wikillm.cli.arguments import add_json, add_trust
from wikillm.core.errors import ConfigError, WikiLLMError
from wikillm.core.units import format_count, format_size
from wikillm.data.tokenizer.chat_template import CHATML, read_chat_template
from wikillm.evals.results import TASK_HEAD, TEXT_HEAD, read_results, task_rows, text_rows
from wikillm.export.target_folder import MARK, check_target
from wikillm.report.figures import loss_plot
from wikillm.report.plot import svg_file
from wikillm.report.run_files import read_run

if TYPE_CHECKING:
    from wikillm.export.card import CardContent, Grid
    from wikillm.export.folder import Exported

EPILOG = """
RUN is a run directory (its newest complete checkpoint is exported) or one checkpoint:
  wikillm export runs/wiki-zh-120m
  wikillm export runs/wiki-zh-120m/checkpoints/checkpoint-500 --to my-model --dtype bfloat16
The folder loads with plain transformers. Before it is put in place, a process without WikiLLM opens
it with AutoTokenizer and AutoModelForCausalLM: several hundred texts must get the ids of the
training tokenizer, and the logits must equal the trained model's. The folder is complete or absent.
An earlier export in the folder is replaced; a folder with other files is refused.

--push uploads a run or an exported folder with the hub's own client, which reads its token from the
environment (MODELSCOPE_API_TOKEN, HF_TOKEN) or its login:
  wikillm export runs/wiki-zh-120m --licence cc-by-sa-4.0 --push modelscope:ORG/NAME
  wikillm export exports/wiki-zh-120m-500 --push hf:ORG/NAME --private
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    help = "a run directory, a checkpoint of a run, or (with --push) an exported folder"
    add("run", metavar="RUN", help=help)
    add("--to", metavar="DIR", help="folder to write. Default: exports/NAME-STEP")
    help = "float32, bfloat16 or float16. Default: the type of the training"
    add("--dtype", metavar="TYPE", help=help)
    help = "export the moving average of the weights (train.ema_decay)"
    add("--ema", action="store_true", help=help)
    help = "folder with tokenizer.json, for a checkpoint without its run"
    add("--tokenizer", metavar="DIR", help=help)
    help = (
        "chat template of the folder: chatml, tokenizer (its own), none, or a Jinja file. Default: "
        "the tokenizer's own where the run started from a model, else none"
    )
    add("--chat-template", metavar="NAME", help=help)
    help = "upload the folder: modelscope:ORG/NAME, hf:ORG/NAME"
    add("--push", metavar="HUB:ORG/NAME", help=help)
    add("--private", action="store_true", help="with --push: create a private repository")
    add("--update", action="store_true", help="with --push: add a commit if the repository exists")
    help = "licence of the weights, such as apache-2.0, for the model card. Default: unknown"
    add("--licence", "--license", metavar="ID", help=help)
    add("--data-licence", metavar="ID", help="licence of the data. Default: data.licence")
    help = "languages of the data, as in zh,en. Default: detected in its text"
    add("--language", metavar="LIST", help=help)
    help = "for the model card: compare every trained token with the store, not only the samples"
    add("--audit", action="store_true", help=help)
    add_trust(parser)
    add("--dry-run", action="store_true", help="show what would be written, and write nothing")
    add_json(parser, "print a JSON object instead of lines; --push prints a second JSON object")


def run(args: argparse.Namespace) -> int:
    from wikillm.export.push import check_token, parse_repository
    from wikillm.export.run_records import find_tokenizer, held_out_texts, read_card_content

    _check_flags(args)
    repository = parse_repository(args.push) if args.push else None
    if repository is not None and not args.dry_run:
        check_token(repository)
    if repository is not None and (Path(args.run) / MARK).is_file():
        return _push(args, Path(args.run))
    checkpoint = find_complete(Path(args.run))
    held_out = held_out_texts(checkpoint)
    content = _published_content(args, read_card_content(checkpoint), checkpoint, held_out)
    if args.ema:
        weights = "moving average of the run's weights (train.ema_decay)"
        content = replace(content, training={**content.training, "weights": weights})
    default = f"exports/{content.name}-{content.step}{'-ema' if args.ema else ''}"
    target = Path(args.to or default)
    tokenizer = Path(args.tokenizer) if args.tokenizer else find_tokenizer(checkpoint)
    content = _with_template(args, content, tokenizer)
    # Refuse a target that holds other files before the checkpoint is read.
    check_target(target)
    plan = {"checkpoint": str(checkpoint), "tokenizer": str(tokenizer), "folder": str(target)}
    if args.dry_run:
        lines = (f"{name:<10} {value}" for name, value in plan.items())
        print(json.dumps(plan) if args.json else "\n".join(lines))
        return 0
    if not args.json:
        print(f"reading    {checkpoint}", flush=True)
    from wikillm.export.folder import export_model

    done = export_model(
        checkpoint,
        target,
        trust=args.trust_checkpoint,
        dtype=args.dtype,
        tokenizer_dir=tokenizer,
        content=content,
        verified=True,
        ema=args.ema,
        held_out=held_out,
    )
    _show(args, done, plan)
    if args.push:
        return _push(args, target)
    return 0


def _show(args: argparse.Namespace, exported: Exported, plan: dict[str, str]) -> None:
    """Print what was written, and what the proof compared."""
    if args.json:
        names = ("parameters", "tensors", "dtype", "architecture")
        written = {name: getattr(exported, name) for name in names} | {"bytes": exported.size}
        written["proof"] = asdict(exported.proof) if exported.proof else None
        print(json.dumps(plan | written))
        return
    size = f"{format_count(exported.parameters)} parameters, {exported.dtype}"
    size += f", {format_size(exported.size)}"
    print(f"written    {exported.folder}  {exported.architecture}, {size}")
    print(f"checked    {exported.tensors} tensors read back equal, bit for bit")
    proof = exported.proof
    if proof is not None:
        print(
            f"proved     transformers {proof.transformers}, without WikiLLM: equal ids for "
            f"{proof.texts} texts, and the logits of the trained model"
        )
    if not args.push:
        command = "chat" if args.chat_template not in (None, "none") else "generate"
        prompt = "" if command == "chat" else ' --prompt "..."'
        print(f"next       wikillm {command} {shlex.quote(str(exported.folder))}{prompt}")


def _check_flags(args: argparse.Namespace) -> None:
    """Raises ConfigError for flags without effect, and for licences that hubs do not recognise."""
    if (args.private or args.update) and not args.push:
        what = f"{'--private' if args.private else '--update'} has no effect without --push."
        raise ConfigError(what, fix="--push modelscope:ORG/NAME or --push hf:ORG/NAME")
    for flag, value in (("--licence", args.licence), ("--data-licence", args.data_licence)):
        if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", value):
            raise ConfigError(
                f"{flag} {value[:60]!r} is not a licence id that hubs recognise.",
                fix=f"{flag} apache-2.0, mit, cc-by-sa-4.0, other, unknown",
            )


def _with_template(args: argparse.Namespace, content: CardContent, tokenizer: Path) -> CardContent:
    """Add the chat template for the exported folder.

    A model trained from scratch never saw its tokenizer's template. With the template, servers
    would accept messages that the model cannot answer, so it is left out by default.
    """
    own = read_chat_template(tokenizer)
    name = args.chat_template
    if name is None:
        name = "tokenizer" if own and content.training.get("model.init_from") else "none"
        if own and name == "none" and not args.json:
            print(
                "template   the tokenizer's chat template is left out: the model was not trained "
                "on it (--chat-template tokenizer keeps it)"
            )
    if name == "none":
        return content
    if name == "chatml":
        return replace(content, chat_template=CHATML, template_name=name)
    if name == "tokenizer":
        if own is None:
            what = "The tokenizer has no chat template."
            raise ConfigError(what, got=str(tokenizer), fix="--chat-template chatml")
        return replace(content, chat_template=own, template_name="the tokenizer's own")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        what = f"--chat-template {name} is neither a known name nor a readable file."
        fix = "--chat-template chatml, tokenizer, none or FILE"
        raise ConfigError(what, got=str(error), fix=fix) from error
    return replace(content, chat_template=text, template_name=Path(name).name)


def _published_content(
    args: argparse.Namespace, content: CardContent, checkpoint: Path, held_out: list[str]
) -> CardContent:
    """Add what the run does not record: licences, languages, curve, audit, evaluations."""
    from wikillm.export.card import languages_of
    from wikillm.export.run_records import run_of

    languages = args.language.split(",") if args.language else languages_of(held_out)
    content = replace(content, licence=args.licence or content.licence, languages=tuple(languages))
    if args.data_licence:
        content = replace(content, data_licence=args.data_licence)
    run = run_of(checkpoint)
    if run is None or args.dry_run:
        return content
    provenance = {**content.provenance, **_audit(run, content.step, with_tokens=args.audit)}
    return replace(
        content,
        curve=_curve(run),
        provenance=provenance,
        evaluations=_evaluations(run, content.step),
    )


def _evaluations(run: Path, step: int | None) -> tuple[Grid, ...]:
    """Tables of the results that `wikillm eval` recorded for this step."""
    records = [record for record in read_results(run) if record["model"].get("step") == step]
    grids = ((TEXT_HEAD, text_rows(records)), (TASK_HEAD, task_rows(records)))
    return tuple((head, rows) for head, rows in grids if rows)


def _curve(run: Path) -> str:
    """The loss curves of a run as SVG; an empty string if the run logged no loss."""
    with suppress(WikiLLMError):
        plot = loss_plot(read_run(run))
        return svg_file(plot) if plot.drawn() else ""
    return ""


def _audit(run: Path, step: int | None, *, with_tokens: bool) -> dict[str, str]:
    """The result of the audit up to `step`, for the card; empty for a run without a ledger."""
    from wikillm.ledger.audit import audit_run
    from wikillm.ledger.record import NAME

    if not (run / NAME).is_file():
        return {}
    try:
        found = audit_run(run, last_step=step, with_tokens=with_tokens)
    except WikiLLMError as error:
        return {"audit": f"not possible: {error.what}"}
    steps = f"steps {found.first_step:,} to {found.last_step:,}"
    if not found.is_proven:
        return {"audit": f"not proven, {steps}: the first wrong step is {found.wrong[0].step:,}"}
    tokens = f"{found.tokens_compared:,} tokens compared" if with_tokens else "tokens not compared"
    samples = f"samples {found.first:,} to {found.stop - 1:,}"
    return {"audit": f"proven, {steps}: {samples}, each once per epoch; {tokens}"}


def _push(args: argparse.Namespace, folder: Path) -> int:
    """Push a finished export. The local folder stays, also when the push fails."""
    from wikillm.export.push import parse_repository, push_folder

    repository = parse_repository(args.push)
    if args.dry_run:
        print(json.dumps({"folder": str(folder), "push": str(repository)}))
        return 0
    if not args.json:
        print(f"pushing    {folder} to {repository}", flush=True)
    url = push_folder(folder, repository, private=args.private, update=args.update)
    print(json.dumps({"folder": str(folder), "url": url}) if args.json else f"pushed     {url}")
    return 0
