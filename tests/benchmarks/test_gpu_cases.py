"""The GPU benchmark without a GPU: its cases, its order, its files, its processes, and one step for real on the CPU."""

from __future__ import annotations

import json
import operator
import os
import signal
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch

from benchmarks.gpu import __main__ as entry
from benchmarks.gpu import allocator_programs, cases, compare, measure, memory_truth, plain, processes, recipe
from benchmarks.gpu.cases import AXES, BOUNDARIES, CASES, PLAIN, Boundary, Case, by_value, case, names, next_trial
from benchmarks.gpu.memory_truth import LEADING, LEAST_SECONDS, Store, measure_all, plan
from gradaccum.catalog.models import read_config
from gradaccum.memory.allocator import Allocator
from tests.benchmarks.cpu_meter import Host

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = 2**36
CARD = {"device": "a card", "torch": "2.11.0", "total_memory": WHOLE}
TINY = Case(model="plain-gpt-tiny", micro_batch=1, sequence_length=4, dtype="fp32")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A model of two layers beside the plain ones: the same code, done in no time."""
    maker = {TINY.model: lambda eager: plain.Language(2, 64, 2, 4096, positions=64, eager=eager)}
    with mock.patch.dict(plain._MAKERS, maker), mock.patch.dict(PLAIN, {TINY.model: 366_336}):
        yield


# The cases


def test_the_cases_span_what_was_asked_for():
    assert len(CASES) >= 60
    assert len(set(names(CASES))) == len(CASES)
    sizes = sorted(each.params for each in CASES)
    assert 1e7 <= sizes[0] < 2e7
    assert 8e9 < sizes[-1] < 8.1e9
    for field, words in AXES.items():
        assert {getattr(each, field) for each in CASES} == set(words), field
    assert {each.accum_steps for each in CASES} == {1, 2, 8}
    families = {each.family for each in CASES}
    assert families >= set("gpt2 llama qwen2 qwen3 mistral gemma gemma2 gemma3_text bert vit mixtral".split())
    assert families >= {"plain-gpt", "plain-llama", "plain-vit", "plain-resnet", "plain-moe"}
    for kept in AXES["checkpointing"]:
        assert {each.lora_rank > 0 for each in CASES if each.checkpointing == kept} >= {False}
    assert {each.checkpointing for each in CASES if each.lora_rank} == {"none", "full"}
    for flag in cases.FLAGS:
        assert {getattr(each, flag) for each in CASES} == {True, False}
    assert any(each.settings for each in CASES)


def test_the_boundaries_span_four_cards():
    assert len(BOUNDARIES) >= 12
    assert {each.case.card_gb for each in BOUNDARIES} == {8, 12, 16, 24}
    assert len({each.case.name for each in BOUNDARIES}) == len(BOUNDARIES)
    for each in BOUNDARIES:
        assert each.trial(3).limit_bytes == each.case.card_gb * 2**30 - 805_306_368


def test_the_first_cases_show_every_value():
    ordered = by_value(CASES)
    assert sorted(names(ordered)) == sorted(names(CASES))
    for field in (*AXES, *cases.FLAGS, "accum_steps", "settings", "family"):
        leading = {getattr(each, field) for each in ordered[:LEADING]}
        assert leading == {getattr(each, field) for each in CASES}, field
    early = ordered[:8]
    assert len({each.dtype for each in early}) >= 4
    assert len({each.checkpointing for each in early}) == 3


def test_a_case_survives_json():
    for each in CASES:
        assert Case(**each.to_dict()) == each


@pytest.mark.parametrize("model", [*PLAIN])
def test_plain_models_are_as_large_as_they_say(model: str):
    with torch.device("meta"):
        made = plain.make(model, "sdpa")
    assert sum(each.numel() for each in made.parameters()) == PLAIN[model]


def test_a_wrong_size_is_an_error(monkeypatch):
    monkeypatch.setitem(PLAIN, TINY.model, 13_000_000)
    with pytest.raises(ValueError, match="plain-gpt-tiny has 13,000,000 parameters, and not 366,336"):
        recipe.job(TINY, "meta")


def test_configs_say_what_the_catalog_says():
    """Read back by the catalog's own reader of Transformers' config files, which knows all their fields."""
    shapes = {each.model: each.shape for each in CASES if not each.plain}
    for name, shape in shapes.items():
        config: dict[str, Any] = {**recipe.config_of(shape), "model_type": shape.family}
        if shape.family == "vit":
            continue  # the reader asks for what Transformers leaves out: patches and channels
        found = read_config(config, name)
        assert found.params == shape.params, name
        assert (found.kv_heads, found.head_dim, found.ffn) == (shape.kv_heads, shape.head_dim, shape.ffn), name


def test_experts_do_what_each_token_chose():
    """Beside a loop over tokens, with room for all."""
    torch.manual_seed(0)
    layer = plain.Experts(8, 16, 4).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    with mock.patch.object(plain, "CAPACITY", 4.0):
        found = layer(x)[0]
    for token, row in zip(x[0], found):
        shares = layer.router(token).softmax(-1)
        best = shares.topk(2).indices
        wanted = sum(shares[e] * (torch.nn.functional.silu(token @ layer.up[e]) @ layer.down[e]) for e in best.tolist())
        torch.testing.assert_close(row, wanted)


# The boundary


@pytest.mark.parametrize("first", [1, 4, 64])
def test_the_boundary_is_found(first: int):
    for true in [*range(40), 63, 64, 65, 100]:
        fits: dict[int, bool] = {}
        while (trial := next_trial(fits, first)) is not None:
            assert trial not in fits
            fits[trial] = trial <= true
        assert max((each for each, fit in fits.items() if fit), default=0) == true
        assert len(fits) <= 15


# The files, and going on


def test_rows_are_kept_and_one_that_was_cut_off_is_not(tmp_path: Path):
    store = Store(tmp_path / "new")
    assert store.rows() == []
    store.add({"case": "a"})
    with (tmp_path / "new" / "cases.jsonl").open("ab") as file:
        file.write(b'{"case": "b", "stat')
    assert store.rows() == [{"case": "a"}]
    store.add({"case": "c"})
    assert store.rows() == [{"case": "a"}, {"case": "c"}]


class Clock:
    """Seconds pass with the work alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, case: Case, seconds: float) -> dict[str, Any]:
        self.seen.append(case.name)
        self.now += min(50, seconds)
        if seconds < 50:
            return {"status": "timeout", "why": "not done"}
        return {"status": "ok" if case.micro_batch <= 5 else "oom", "events": f"of {case.name}"}


def test_it_goes_on_where_it_stopped(tmp_path: Path, capsys):
    wanted: list[Case | Boundary] = [case("gpt2", 1), Boundary(case("gpt2", 0, card_gb=8), 2), case("gpt2", 2, "fp32")]
    store = Store(tmp_path)
    clock = Clock()
    # 2 rows; the third case has 30 seconds left, which are not enough, and is no result.
    assert measure_all(store, clock.work, CARD, 130, wanted, clock) == {"ok": 2}
    assert len(clock.seen) == 3
    again = Clock()
    measure_all(store, again.work, CARD, 10_000, wanted, again)
    of_boundary = [f"gpt2 m{m} s1024 bf16 on 8 GB" for m in (4, 8, 6, 5)]
    assert again.seen == [*of_boundary, "gpt2 m2 s1024 fp32"]
    assert [row["case"] for row in store.rows("events")] == [row["case"] for row in store.rows()]
    last = Clock()
    assert measure_all(store, last.work, CARD, 10_000, wanted, last) == {}
    other = Clock()
    measure_all(store, other.work, {**CARD, "device": "another"}, 10_000, wanted[:1], other)
    assert other.seen == ["gpt2 m1 s1024 bf16"]
    assert "oom" in capsys.readouterr().out
    (found,) = compare.boundaries(tmp_path)
    assert (found["max_micro_batch"], found["trials"]) == (5, 5)
    assert found["case"].name == "gpt2 m5 s1024 bf16 on 8 GB"


def test_nothing_begins_in_the_last_seconds(tmp_path: Path):
    clock = Clock()
    assert measure_all(Store(tmp_path), clock.work, CARD, LEAST_SECONDS - 1, plan(), clock) == {}


def test_what_was_skipped_is_tried_again_and_a_broken_trial_ends_its_boundary(tmp_path: Path):
    wanted: list[Case | Boundary] = [case("gpt2", 1), Boundary(case("gpt2", 0, card_gb=8), 2)]
    store = Store(tmp_path)
    answers = iter(["skipped", "crashed"])
    measure_all(store, lambda case, seconds: {"status": next(answers)}, CARD, 1e9, wanted, lambda: 0.0)
    seen: list[str] = []

    def work(case: Case, seconds: float) -> dict[str, Any]:
        seen.append(case.name)
        return {"status": "ok"}

    measure_all(store, work, CARD, 1e9, wanted, lambda: 0.0)
    assert seen == ["gpt2 m1 s1024 bf16"]
    assert [*compare.boundaries(tmp_path)] == []


def test_a_boundary_whose_trial_was_skipped_ends(tmp_path: Path):
    wanted: list[Case | Boundary] = [Boundary(case("gpt2", 0, card_gb=8), 2)]
    counts = measure_all(Store(tmp_path), lambda *_: {"status": "skipped"}, CARD, 1e9, wanted, lambda: 0.0)
    assert counts == {"skipped": 1}


# The processes


@pytest.mark.slow
@pytest.mark.parametrize("fork", [True, False])
def test_each_ending_is_a_row(monkeypatch, fork: bool):
    monkeypatch.setattr(processes, "PRELOAD", "json")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    call: Any = processes.Processes(fork).call
    assert call(dict, {"status": "ok"}, seconds=60) == {"status": "ok"}
    assert call(os._exit, 3, seconds=60)["why"] == "the process ended with code 3"
    assert call(signal.raise_signal, signal.SIGKILL, seconds=60)["why"] == "the process was ended by SIGKILL"
    assert call(operator.getitem, {}, "x", seconds=60)["status"] == "failed"
    assert call(time.sleep, 60, seconds=0.5) == {"status": "timeout", "why": "not done after 0 s"}
    assert call(os.getenv, "SOME_SETTING", seconds=60, environ={"SOME_SETTING": "here"}) == "here"
    assert "SOME_SETTING" not in os.environ


def test_without_a_device_it_says_so(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(processes.Processes, "call", lambda self, work, *rest, seconds: work(*rest))
    memory_truth.main(["--out", str(tmp_path / "x")])
    entry.main(["all", "--out", str(tmp_path / "x")])
    assert capsys.readouterr().out == 2 * "Nothing is measured: no CUDA device.\n"
    assert not (tmp_path / "x").exists()


def test_a_process_that_cannot_be_forked_is_started_anew(monkeypatch):
    tried = []

    def call(self: Any, work: Any, *rest: Any, seconds: float) -> dict[str, Any]:
        tried.append(self.fork)
        return {"status": "failed", "why": "CUDA was there before the fork"} if self.fork else {"status": "ok", **CARD}

    monkeypatch.setattr(processes.Processes, "call", call)
    found = memory_truth.find_device()
    assert found is not None
    assert (tried, found[0].fork, found[1]) == ([True, False], False, CARD)


# One step for real


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    """A tiny case, run by the CPU."""
    return measure.run(TINY, Host())


def test_a_row_tells_each_phase(row: dict[str, Any]):
    assert row["status"] == "ok", row
    phases = [(each["update"], each["micro_step"], each["phase"]) for each in row["phases"]]
    wanted = [(0, 0, "setup")]
    for update in (0, 1):
        wanted += [(update, m, phase) for m in (0, 1) for phase in ("forward", "backward")]
        wanted.append((update, 1, "step"))
    assert phases == wanted
    assert Case(**row["fields"]) == TINY
    assert row["environment"]["torch"] == torch.__version__
    assert row["operators"]["aten.embedding_dense_backward"] == 2
    assert row["states"] == len([*plain.make(TINY.model, "sdpa").parameters()])


def test_its_bytes_are_those_of_weights_gradients_and_states(row: dict[str, Any]):
    weights = 4 * PLAIN[TINY.model]
    left = {(each["update"], each["micro_step"], each["phase"]): each["left"] for each in row["phases"]}
    assert left[0, 0, "setup"] == pytest.approx(weights, rel=1e-3)
    assert left[0, 0, "backward"] == pytest.approx(2 * weights, rel=1e-3)
    assert left[0, 1, "backward"] == pytest.approx(2 * weights, rel=1e-3)
    assert left[1, 0, "backward"] == pytest.approx(4 * weights, rel=1e-3)
    assert left[1, 1, "step"] == pytest.approx(3 * weights, rel=1e-3)
    assert row["allocated_bytes"] >= 4 * weights


def test_out_of_memory_is_a_row(row: dict[str, Any]):
    before, step = row["phases"][4:6]
    assert before["allocated"] < step["allocated"]
    found = measure.run(TINY, Host(limit=step["allocated"] - 1))
    assert (found["status"], found["during"]) == ("oom", {"update": 0, "micro_step": 1, "phase": "step"})
    assert found["allocated_bytes"] > before["allocated"]


def test_a_failure_and_a_missing_package_are_rows(monkeypatch):
    monkeypatch.setitem(PLAIN, TINY.model, 1)
    host = Host()
    found = measure.run(TINY, host)
    host.close()
    assert found["status"] == "failed"
    assert found["why"] == "ValueError: plain-gpt-tiny has 1 parameters, and not 366,336"
    monkeypatch.setattr(recipe.importlib.util, "find_spec", lambda name: None)
    found = measure.run(case("llama-3.1-8b", 1, "lora16", "adamw-8bit", "compiled"), Host())
    assert found["why"] == "not installed: transformers, peft, bitsandbytes, triton"


@pytest.mark.parametrize("words", ["amp-bf16 full", "amp-fp16 selective eager accum1 sgd", "bf16 math adamw-loop"])
def test_other_kinds_of_step_run_too(words: str):
    found: Any = measure.run(case(TINY.model, 1, "s8", *words.split()), Host())
    assert found["status"] == "ok", found
    recomputed = found["operators"]["aten.native_layer_norm"] > 2 * 2 + 1
    assert recomputed == ("full" in words or "selective" in words)


def test_the_meter_of_cuda_asks_what_pytorch_answers(monkeypatch):
    """The functions of torch.cuda with their signatures, and answers of their shape."""
    segment = {"segment_type": "large", "total_size": 20, "allocated_size": 12}
    trace = [
        {"action": "segment_alloc", "addr": 512, "size": 20, "stream": 0},
        {"action": "alloc", "addr": 512, "size": 12, "stream": 0},
        {"action": "segment_alloc", "addr": 256, "size": 20, "stream": 0},
        {"action": "alloc", "addr": 256, "size": 7, "stream": 0},
        {"action": "free_requested", "addr": 512, "size": 12, "stream": 0},
        {"action": "free_completed", "addr": 512, "size": 12, "stream": 0},
    ]
    answers = {
        "init": None,
        "mem_get_info": (2**36 - 700, 2**36),
        "memory_reserved": 40,
        "memory_allocated": 7,
        "max_memory_allocated": 19,
        "max_memory_reserved": 40,
        "reset_peak_memory_stats": None,
        "set_per_process_memory_fraction": None,
        "get_device_properties": mock.Mock(total_memory=2**36),
        "get_device_name": "a card",
        "get_device_capability": (9, 0),
        "memory_stats": {"num_ooms": 0, "another": 1},
        "memory._record_memory_history": None,
        "memory._snapshot": {"segments": [segment, segment], "device_traces": [trace]},
    }
    with mock.patch("torch.cuda.device_memory_used", side_effect=[100, 600, 640], create=True):
        for name, answer in answers.items():
            holder = torch.cuda.memory if "." in name else torch.cuda
            bare = name.rpartition(".")[2]
            monkeypatch.setattr(holder, bare, mock.create_autospec(getattr(holder, bare), return_value=answer))
        meter = measure.Cuda()
        meter.open(case("gpt2", 1, card_gb=8))
        assert meter.peaks() == {"allocated": 19, "reserved": 40, "left": 7}
        assert meter.environment()["fraction"] == (8 * 2**30 - cases.OUTSIDE) / 2**36
        closed: dict[str, Any] = meter.close()
    assert closed["context_bytes"] == {"at_first": 460, "at_last": 500}
    assert closed["stats"] == {"num_ooms": 0}
    assert closed["segments"] == {"large": {"count": 2, "bytes": 40, "allocated": 24}}
    assert closed["segment_addresses"] == {"up": 0, "down": 1}
    assert measure.unpacked(closed["events"]) == {"sizes": [12, 7], "events": [0, 1, ~0], "streams": 1}


# Predicted beside measured


def test_measured_rows_are_told(tmp_path: Path, row: dict[str, Any]):
    store = Store(tmp_path)
    measure_all(store, lambda *_: dict(row), {**CARD, "device": "host", "torch": torch.__version__}, 1e9, [TINY])
    store.add({**row, "case": "another", "status": "failed"})
    (found,) = compare.measured_cases(tmp_path)
    assert found["case"] == TINY
    assert found["allocated_bytes"] == row["allocated_bytes"]
    assert found["optimizer_bytes"] == row["phases"][-1]["allocated"]
    assert found["limit_bytes"] is None
    assert store.rows("events") == [{"case": TINY.name, "device": "host", "events": "nothing"}]


def test_a_prediction_is_held_against_a_row_and_its_record(tmp_path: Path):
    """What is "measured" is the trace itself, with one block of 1 MiB more from the first step on."""
    small = case(TINY.model, 2, "s64")
    environment = {"capability": [9, 0], "total_memory": 2**36, "torch": "2.13.0", "device": "a card"}
    trace = compare.traced(small, (9, 0))
    sizes = [*(block.bytes for block in trace.blocks), 2**20]
    events = [*trace.events[: trace.num_setup], len(sizes) - 1, *trace.events[trace.num_setup :]]
    record = {"sizes": sizes, "events": events, "streams": 1}
    peaks = compare.replayed(record, Allocator(None))
    measured = {"case": small, "status": "ok", **peaks, "environment": environment}
    result = compare.compared(measured, record)
    foreseen = result["predicted"]["allocated_bytes"]
    assert peaks["allocated_bytes"] - foreseen == 2**20
    assert result["error_percent"]["allocated_bytes"] == round(100 * (foreseen / peaks["allocated_bytes"] - 1), 4)
    assert result["allocator"]["descending"] == peaks
    (off,) = result["difference"]
    assert off["bytes"] == 2**20
    assert off["measured"] == off["foreseen"] + 1
    assert compare.line(result)[-2] == "equal"
    summary = compare.summed([result, {"same_verdict": False}])
    assert summary["cases"] == 2
    assert summary["of these with the same verdict"] == 1
    assert summary["largest error of allocated_bytes, percent"] == abs(result["error_percent"]["allocated_bytes"])
    # The same card with a limit below the need: both say so.
    tight = {**measured, "case": case(TINY.model, 100_000, "s64", card_gb=8), "status": "oom"}
    verdict = compare.compared(tight, None)
    assert verdict["predicted"]["status"] == "oom"
    assert verdict["same_verdict"]
    assert compare.line(verdict)[1:3] == ["oom", "oom"]


def test_a_peak_of_a_record_is_where_most_is_alive():
    record = {"sizes": [1000, 3000, 512, 600], "events": [0, 1, ~0, 2, ~1, 3]}
    assert compare.record_peak(record) == {1024: 1, 3072: 1}
    assert compare.difference({1024: 2, 512: 1}, {1024: 1, 512: 3}) == [
        {"bytes": 1024, "measured": 2, "foreseen": 1},
        {"bytes": 512, "measured": 1, "foreseen": 3},
    ]


def test_a_dry_run_traces_and_says_what_it_found(tmp_path: Path, capsys):
    compare.main(["--dry", "--only", "plain-gpt-13m m64 s256 bf16", "--out", str(tmp_path / "dry.json")])
    out = capsys.readouterr().out
    assert out.startswith("ok")
    assert "1 ok" in out
    assert '"status": "ok"' in (tmp_path / "dry.json").read_text(encoding="utf-8")


def test_the_closed_form_is_asked_where_it_knows_the_case():
    assert compare.closed_form(case("llama-3.2-1b", 4), (9, 0)) is not None
    assert compare.closed_form(case("vit-b-16", 4), (9, 0)) is not None
    assert compare.closed_form(case("plain-resnet-50", 4), (9, 0)) is None
    assert compare.closed_form(case("plain-gpt-13m", 4), (9, 0)) is None
    assert compare.closed_form(case("gpt2", 4, "math"), (9, 0)) is None


def test_comparing_a_folder_writes_its_result(tmp_path: Path, capsys, row: dict[str, Any]):
    kept = {name: value for name, value in row.items() if name != "events"}
    Store(tmp_path).add({**kept, "environment": {**kept["environment"], "torch": torch.__version__}})
    compare.main([str(tmp_path)])
    assert TINY.name in capsys.readouterr().out
    written = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert (written["summary"]["cases"], written["summary"]["of these with the same verdict"]) == (1, 1)
    assert [*compare.measured_cases(tmp_path / "none")] == []
    with pytest.raises(SystemExit, match="no CUDA"):
        compare.dry([], "mi300x")


# Both parts, one after the other


def test_all_parts_run_and_go_on(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setattr(entry, "find_device", lambda: (None, CARD))
    monkeypatch.setattr(entry, "measured", lambda processes, case, seconds: {"status": "oom" if case.card_gb else "ok"})
    monkeypatch.setattr(entry, "PROGRAMS", 2)
    ran: list[int] = []

    def of_model(case: Any, fraction: float) -> Any:
        ran.append(case.limit)
        return [*allocator_programs.of_model(case, "address", "descending", None, WHOLE, fraction)]

    monkeypatch.setattr(allocator_programs, "in_a_process", of_model)
    for _ in range(2):
        entry.main(["all", "--out", str(tmp_path)])
    assert len(ran) == 2
    assert [row["equal"] for row in Store(tmp_path).rows("programs")] == [True, True]
    assert {row["case"] for row in Store(tmp_path).rows()} >= set(names(CASES))
    assert "program 1: equal" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.slow
def test_a_case_on_a_device(tmp_path: Path):
    memory_truth.main(["--out", str(tmp_path), "--minutes", "2", "--only", "plain-gpt-13m m64 s256 bf16"])
    (found,) = compare.measured_cases(tmp_path)
    assert found["status"] == "ok"
    assert found["context_bytes"] > 0
