"""`gradaccum table`."""

from __future__ import annotations

import json

from gradaccum.cli import main


def run(capsys, *arguments):
    code = main(["table", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_columns_line_up(capsys):
    code, out, err = run(capsys, "-m", "1..4", "-g", "8,16", "-t", "500")
    lines = out.splitlines()
    assert code == 0
    assert err == ""
    assert lines[0].split("  ")[0] == "micro-batch"
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["3", "8", "21", "504", "+4"]


def test_long_tables_are_cut_and_say_so(capsys):
    _, out, err = run(capsys, "-m", "1..64", "-g", "8", "-t", "500")
    assert len(out.splitlines()) == 21
    assert "44 more rows; --limit 0 prints all" in err
    assert len(run(capsys, "-m", "1..64", "-g", "8", "-t", "500", "--limit", "0")[1].splitlines()) == 65
    assert len(run(capsys, "-m", "1..64", "-g", "8", "-t", "500", "--limit", "3")[1].splitlines()) == 4


def test_json_holds_all_rows(capsys):
    _, out, err = run(capsys, "-m", "1..64", "-g", "8", "-t", "500", "--json")
    table = json.loads(out)
    assert err == ""
    assert (table["schema_version"], table["total"], len(table["rows"])) == (1, 64, 64)
    assert table["rows"][0] == {
        "micro_batch": 63, "num_gpus": 8, "accum_steps": 1, "effective_batch": 504, "drift": 4, "drift_tokens": None,
    }  # fmt: skip


def test_tokens_and_presets(capsys):
    _, out, _ = run(capsys, "--preset", "bloom-176b", "-m", "1,2", "--target-tokens", "4M")
    assert "drift in tokens" in out


def test_narrow(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert max(len(line) for line in run(capsys, "-m", "1..4", "-g", "8", "-t", "500")[1].splitlines()) <= 52


def test_mistakes(capsys):
    code, out, err = run(capsys, "-m", "1..1000000000", "-g", "8", "-t", "500")
    assert (code, out) == (2, "")
    assert "at most 10,000" in err
    assert run(capsys, "-m", "1..4", "-g", "8", "-t", "500", "--limit", "x")[0] == 2
