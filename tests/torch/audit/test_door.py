"""`gradaccum audit` on scripts as people write them, each started as from a shell: unchanged, stopped, reported."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest

from tests.torch.audit.door import BESIDE, PYTHON, ROOT, audit, ended_cleanly, environment, start, stopped_after, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]


def test_a_script_sees_itself_and_nothing_is_left_behind(tmp_path):
    write(
        tmp_path,
        train="""
            import argparse, os, sys
            assert "sitecustomize" in sys.modules and sys.modules["sitecustomize"].__file__.startswith(os.getcwd())
            assert "gradaccum" not in sys.modules
            import loop, torch
            options = argparse.ArgumentParser()
            options.add_argument("--updates", type=int)
            options.add_argument("-m", action="store_true")
            options.add_argument("rest", nargs="*")
            print(options.parse_args(), __name__, sys.argv, sys.path[0], __file__)
            print([each for each in sys.path if "audit" in each], [each for each in sys.meta_path if "W" in str(each)])
            print(type(torch.__spec__.loader).__name__, "exec_module" in vars(torch.__spec__.loader))
            loop.train(torch.nn.Linear(8, 3))
            print("never printed")
        """,
        own__sitecustomize="import sys; print('their sitecustomize', file=sys.stderr)",
    )
    before = {each.relative_to(tmp_path) for each in tmp_path.rglob("*")}
    inside = {each for each in (ROOT / "src").rglob("*") if each.suffix != ".pyc" and each.name != "__pycache__"}
    path = os.pathsep.join([str(tmp_path / "own"), str(ROOT / "src")])
    done, report = audit(tmp_path, "--target-batch", 16, "train.py", "--updates", 7, "-m", "--", "a", PYTHONPATH=path)
    assert stopped_after(report)
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if line != "their sitecustomize"]
    assert lines == [
        "Namespace(updates=7, m=True, rest=['a']) __main__ ['train.py', '--updates', '7', '-m', '--', 'a'] "
        f"{tmp_path} {tmp_path}/train.py",
        "[] []",
        "SourceFileLoader False",
        "update 1",
        "update 2",
        "update 3",
    ]
    assert "their sitecustomize" in done.stderr
    assert report["facts"]["effective_batch"] == report["facts"]["target_batch"] == 16
    assert {each.relative_to(tmp_path) for each in tmp_path.rglob("*")} == before
    after = {each for each in (ROOT / "src").rglob("*") if each.suffix != ".pyc" and each.name != "__pycache__"}
    assert after == inside


def test_a_run_that_is_not_stopped_is_the_unwatched_run_bit_for_bit(tmp_path):
    """A module with relative imports, workers by fork, a compiled step, and an error at the end."""
    write(
        tmp_path,
        package__train="""
            import torch
            from .inner import model  # a package without __init__.py
            import loop
            loop.train(model, turns=12, num_workers=2, multiprocessing_context="fork",
                       around=lambda call: torch.compile(call, backend="eager"))
            print(loop.digest(model), __name__, __package__)
            raise ValueError("its own")
        """,
        package__inner="""
            import torch
            torch.manual_seed(0)
            model = torch.nn.Linear(8, 3)
        """,
    )
    alone = start(tmp_path, PYTHON, "-W", "ignore", "-m", "package.train")
    done = start(
        tmp_path, PYTHON, "-m", "gradaccum", "audit", "--updates", "99", "-m", "package.train", PYTHONWARNINGS="ignore"
    )
    assert alone.stdout.startswith("update 1\nupdate 2\nupdate 3\n"), alone.stderr
    assert done.stdout == alone.stdout
    assert done.returncode == alone.returncode == 1
    trace, report = done.stderr.split("\n\nright: in 3 audited updates")
    assert "Traceback" in trace
    assert trace.partition("Traceback")[2].strip() == alone.stderr.partition("Traceback")[2].strip()
    assert "script's exit     1" in report


def test_processes_that_the_script_spawns_are_ranks_of_one_report(tmp_path):
    write(
        tmp_path,
        train="""
            import os, sys, torch
            import torch.distributed as dist, torch.multiprocessing as mp
            from torch.nn.parallel import DistributedDataParallel

            def work(rank, port):
                dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
                torch.manual_seed(rank)
                model = DistributedDataParallel(torch.nn.Linear(8, 3))
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for turn in range(40):
                    loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 8)), torch.randint(0, 3, (4,)))
                    (loss / 2).backward()
                    if turn % 2:
                        optimizer.step()
                        optimizer.zero_grad()
                open(f"finished{rank}", "w")

            if __name__ == "__main__":
                import socket
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
                mp.spawn(work, (port,), nprocs=2)
                sys.exit(0 if not os.path.exists("finished0") else 1)
        """,
    )
    done, report = audit(tmp_path, "train.py")
    assert stopped_after(report)
    assert report["facts"]["ranks"] == 2
    assert report["facts"]["effective_batch"] == 16
    assert done.returncode == 0


def test_ranks_of_torchrun_stop_together_though_one_waits_for_another(tmp_path):
    write(
        tmp_path,
        train="""
            import sys, torch, torch.distributed as dist
            from torch.nn.parallel import DistributedDataParallel
            dist.init_process_group("gloo")
            torch.manual_seed(dist.get_rank())
            model = DistributedDataParallel(torch.nn.Linear(8, 3))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for turn in range(40):
                loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 8)), torch.randint(0, 3, (4,)))
                (loss / 2).backward()
                if turn % 2:
                    optimizer.step()
                    optimizer.zero_grad()
                if turn == 5:  # the first rank looks at other data, and the second waits for it
                    if dist.get_rank() == 0:
                        list(torch.utils.data.DataLoader(range(10)))
                    dist.barrier()
            print("never printed")
        """,
    )
    launch = ["--nproc-per-node=2", "--standalone", "--local-addr=127.0.0.1"]
    done, report = audit(tmp_path, "--", BESIDE / "torchrun", *launch, "train.py")
    assert stopped_after(report)
    assert report["facts"]["ranks"] == 2
    ended_cleanly(done)


def test_the_last_group_of_a_cut_epoch_under_accelerate_launch(tmp_path):
    write(
        tmp_path,
        train="""
            import accelerate, torch
            accelerator = accelerate.Accelerator(gradient_accumulation_steps=3, cpu=True)
            model = torch.nn.Linear(8, 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            data = torch.utils.data.TensorDataset(torch.randn(80, 8), torch.randint(0, 3, (80,)))
            loader = torch.utils.data.DataLoader(data, batch_size=4)
            model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
            for epoch in range(2):
                for x, y in loader:
                    with accelerator.accumulate(model):
                        accelerator.backward(torch.nn.functional.cross_entropy(model(x), y))
                        optimizer.step()
                        optimizer.zero_grad()
        """,
    )
    words = ["--", BESIDE / "accelerate", "launch", "--cpu", "--num_processes=1", "train.py"]
    done, report = audit(tmp_path, "--epoch-end", *words)
    assert report["facts"]["epoch_cut"] == {"groups": 2, "micro_batches": 3, "last_group": 2}
    assert [len(update["micro_batches"]) for update in report["updates"]] == [3, 3, 2]
    assert [update["total"] for update in report["updates"]] == pytest.approx([1, 1, 2 / 3], rel=1e-3)
    assert [finding["code"] for finding in report["findings"]] == ["GA105"]
    assert done.returncode == 1


def test_a_console_script_that_trains_in_a_thread_and_makes_an_error_of_everything(tmp_path):
    write(tmp_path)
    script = tmp_path / "bin" / "our-train"
    script.parent.mkdir()
    script.write_text(
        f"#!{PYTHON}\nimport sys, threading, torch\nsys.path.insert(0, {str(tmp_path)!r})\nimport loop\n"
        "thread = threading.Thread(target=loop.train, args=(torch.nn.Linear(8, 3),))\nthread.start()\nthread.join()\n"
        "try:\n    loop.train(torch.nn.Linear(8, 3))\nexcept BaseException:\n    sys.exit(7)\n"
    )
    script.chmod(0o755)
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    done, report = audit(tmp_path, "--", "our-train", "--anything", PATH=path)
    assert stopped_after(report, 3)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_ctrl_c_gives_the_report_so_far(tmp_path):
    write(
        tmp_path,
        train="""
            import loop, time, torch
            loop.train(torch.nn.Linear(8, 3), turns=9)
            print("ready", flush=True)
            time.sleep(300)
        """,
    )
    words = [str(PYTHON), "-m", "gradaccum", "audit", "--updates", "99", "train.py"]
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert [process.stdout.readline() for _ in range(3)] == ["update 1\n", "update 2\n", "ready\n"]
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert "KeyboardInterrupt" in err
    assert "right: in 2 audited updates" in err
    assert re.search(r"left over +1 micro-batch", err)
    assert process.returncode == 130
