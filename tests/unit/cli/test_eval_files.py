"""`wikillm eval MODEL --text`, as a user types it: the numbers, the record, the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness.questions import ENGLISH, trained_on, write_questions
from harness.tiny_model import tiny_model, write_checkpoint, write_tokenizer

from wikillm.cli.eval_files import split_tasks
from wikillm.cli.main import main
from wikillm.core.errors import ExitCode
from wikillm.evals.questions import read_tasks
from wikillm.evals.results import read_results, task_rows, text_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    write_checkpoint(run, tiny_model(), step=7)
    write_tokenizer(run / "tokenizer", ["北京是中国的首都。", "The history of it."] * 20)
    (run / "config.resolved.yaml").write_text("run: {name: small}\n")
    return run


def test_eval_of_texts(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    news = tmp_path / "news.jsonl"
    news.write_text(json.dumps({"body": "北京是中国的首都。"}) + "\n" + '{"body": "History."}\n')
    other = tmp_path / "other.txt"
    other.write_text("A text of one document. " * 20)
    words = ["eval", str(run), "--text", str(news), str(other), "data.text_key=body", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["text"]
    assert (found["documents"], set(found["by_script"])) == (3, {"simplified", "other"})
    assert found["by_source"][str(news)]["text_bytes"] == len("北京是中国的首都。History.".encode())
    assert (found["context"], found["max_bytes"]) == (64, None), "the model's positions"
    assert 0 < found["bits_per_byte"] < 20
    (record,) = read_results(run)
    assert record["name"] == "checkpoint-7-news"
    assert record["model"]["step"] == 7
    assert set(record["text"]["files"]) == {str(news), str(other)}
    assert [row[1] for row in text_rows([record])] == [
        *("all", "news.jsonl", "other.txt", "other", "simplified")
    ]
    # Many files share a row, which adds up to what the record has.
    part = record["text"]["by_source"][str(other)]
    record["text"]["by_source"] = {f"{n}.txt": part for n in range(25)}
    shared = next(row for row in text_rows([record]) if "more" in row[1])
    assert shared[1] == "5 more files"
    assert shared[2:4] == (f"{part['bits_per_byte']:.4f}", f"{part['perplexity']:,.2f}")
    assert shared[4] == f"{5 * part['tokens']:,}"
    (run / "plan.json").write_text('{"sequence_length": 16}')
    assert main([*words[:-1], "--max-bytes", "10B", "--out", str(tmp_path / "x.json")]) == 0
    printed = capsys.readouterr().out
    assert "context    16 tokens" in printed, "as the run was trained"
    assert "2 documents" in printed
    assert str(tmp_path / "x.json") in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "absent.jsonl"], "--text names a file that does not exist"),
        (["--text", "a.jsonl", "train.max_steps=3"], "takes files"),
        (["--text", "{file}", "--name", "../x"], "--name"),
        (["--text", "{file}", "--max-bytes", "ten"], "--max-bytes"),
        (["--text", "{file}", "data.text_key=none"], "none"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused(
    run: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "A."}\n')
    words = [word.replace("{file}", str(tmp_path / "a.jsonl")) for word in words]
    code = main(["eval", str(run), *words])
    captured = capsys.readouterr().err
    assert code in (ExitCode.CONFIG, ExitCode.DATA), captured
    assert said in captured


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run whose model has learned the answers, and the tasks."""
    folder = tmp_path_factory.mktemp("trained")
    specs = write_questions(folder / "tasks")
    ceval, _, own = read_tasks(specs)
    model, _ = trained_on([*ceval.questions, *own.questions], folder / "run/tokenizer")
    write_checkpoint(folder / "run", model, step=9)
    (folder / "run/config.resolved.yaml").write_text("run: {name: small}\n")
    return folder / "run", specs


def test_eval_of_tasks(trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    run, specs = trained
    assert main(["eval", str(run), "--tasks", ",".join(specs), "--shots", "1"]) == 0
    printed = capsys.readouterr().out
    (record,) = read_results(run)
    assert record["name"] == "checkpoint-9-ceval-cmmlu-own"
    assert record["model"]["step"] == 9
    ceval_result = record["tasks"][0]
    assert ceval_result["subjects"]["nature"]["accuracy"] == 1.0
    assert ceval_result["overall"]["verdict"] == "above chance"
    assert ceval_result["shots"] == 1
    assert set(ceval_result["files"]) >= {"val/nature_val.csv", "dev/nature_dev.csv"}
    assert "above chance" in printed
    assert "astronomy" in printed
    assert len(task_rows([record])) == 3
    chosen = ["eval", str(run), "--tasks", specs[0], "--max-questions", "1", "--form", "letters"]
    assert main([*chosen, "--name", "few", "--json"]) == 0
    (few,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (few["overall"]["questions"], few["form"], few["shots"]) == (1, "letters", 1)
    assert main(["eval", str(run), "--tasks", specs[0], "train.max_steps=2"]) == ExitCode.CONFIG


def test_tasks_of_lm_eval(
    trained: tuple[Path, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")
    run, _ = trained
    rows = [
        {"question": question, "choices": choices, "answer": 1} for question, choices, _ in ENGLISH
    ]  # of the second question 1 is wrong, as the model knows
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {tmp_path}/own.jsonl}}\n"
    rest = (
        'test_split: test\noutput_type: multiple_choice\ndoc_to_choice: "{{choices}}"\n'
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    asked = 'doc_to_text: "Question: {{question}}\\nAnswer:"\n'
    (tmp_path / "own.yaml").write_text(f"task: own_questions\n{local}{rest}{asked}")
    joined = 'doc_to_text: "问题：太阳从哪边升起\\n答案："\ntarget_delimiter: ""\n'
    (tmp_path / "joined.yaml").write_text(f"task: joined\n{local}{rest}{joined}")
    (tmp_path / "far.yaml").write_text(
        f"task: far\ndataset_path: nobody/nothing-here\n{rest}{asked}"
    )
    words = ["eval", str(run), "--tasks-dir", str(tmp_path), "--tasks"]
    assert main([*words, "lm_eval:own_questions", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (found["overall"]["questions"], found["overall"]["accuracy"]) == (2, 0.5)
    assert set(found["files"]) == {str(tmp_path / "own.yaml"), str(tmp_path / "own.jsonl")}
    (tmp_path / "own.jsonl").write_text('{"choices": ["东方", "西方"], "answer": 0}\n')
    assert main([*words, "lm_eval:joined"]) == ExitCode.DATA
    assert "one token" in capsys.readouterr().err
    assert main([*words, "lm_eval:far"]) == ExitCode.DATA
    assert "not on this machine" in capsys.readouterr().err
    assert main([*words, "lm_eval:own_question"]) == ExitCode.CONFIG
    assert "lm_eval:own_questions" in capsys.readouterr().err


def test_a_missing_lm_eval_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wikillm.evals.lm_eval_tasks.find_spec", lambda name: None)
    assert main(["eval", str(run), "--tasks", "lm_eval:x"]) == ExitCode.CONFIG
    assert 'pip install "wikillm[eval]"' in capsys.readouterr().err
    assert main(["eval", str(run), "--tasks", "ceval:x", "--tasks-dir", "."]) == ExitCode.DATA


def test_words_without_a_kind_belong_to_the_kind_before_them() -> None:
    assert split_tasks("lm_eval:a,b,ceval:x,choices:y.jsonl") == (
        ["ceval:x", "choices:y.jsonl"], ["a", "b"],
    )  # fmt: skip
    assert split_tasks(None) == ([], [])


def test_a_model_of_nan_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    write_tokenizer(run / "tokenizer", ["The history of it."] * 20)
    (run / "config.resolved.yaml").write_text("run: {name: small}\n")
    model = tiny_model()
    model.model.norm.weight.data.fill_(float("nan"))
    write_checkpoint(run, model, step=3)
    (tmp_path / "a.txt").write_text("The history.")
    out = tmp_path / "out.json"
    words = ["eval", str(run), "--text", str(tmp_path / "a.txt"), "--out", str(out)]
    assert main(words) == ExitCode.DIVERGED
    assert "not a finite number" in capsys.readouterr().err
    assert not out.exists()
