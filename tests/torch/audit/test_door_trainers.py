"""`gradaccum audit` where a framework has the loop, or the start, in its hands."""

from __future__ import annotations

import json
import random

import pytest

from tests.torch.audit.door import BESIDE, PYTHON, audit, ended_cleanly, start, stopped_after, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]


TRAINERS = {
    "transformers": """
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64))
        ids = [torch.randint(0, 64, (length,)) for length in (6, 6, 12, 12, 9, 9) * 8]
        data = [{"input_ids": each, "labels": each} for each in ids]
        options = TrainingArguments("out", per_device_train_batch_size=1, gradient_accumulation_steps=4,
            num_train_epochs=2, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
        Trainer(model, options, train_dataset=data).train()
        print("never printed")
    """,
    "lightning": """
        import lightning, torch

        class Model(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(8, 3)

            def training_step(self, batch, index):
                return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

            def configure_optimizers(self):
                optimizer = torch.optim.AdamW(self.parameters())
                schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
                return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        data = torch.utils.data.TensorDataset(torch.randn(80, 8), torch.randint(0, 3, (80,)))
        trainer = lightning.Trainer(max_epochs=3, accumulate_grad_batches=4, logger=False, accelerator="cpu", devices=1,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=4))
        print("never printed")
    """,
}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_is_stopped_cleanly(tmp_path, name):
    write(tmp_path, train=TRAINERS[name])
    done, report = audit(tmp_path, "train.py", TOKENIZERS_PARALLELISM="false")
    assert stopped_after(report)
    assert report["facts"]["framework"] == name
    assert report["facts"]["micro_batches_per_update"] == 4
    assert report["facts"]["scheduler_steps_per_update"] == 1
    ended_cleanly(done)


def test_a_script_of_hydra(tmp_path):
    """Its decorator reads the command line, looks for the script's folder, and makes an exit code of an error."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("steps: 2\nfails: false\n")
    write(
        tmp_path,
        train="""
            import hydra, loop, torch

            @hydra.main(version_base=None, config_path="conf", config_name="config")
            def main(config):
                loop.train(torch.nn.Linear(8, 3), steps=config.steps, turns=config.steps * (2 if config.fails else 10))
                assert not config.fails, "planted"
                print("never printed")

            if __name__ == "__main__":
                main()
        """,
    )
    done, report = audit(tmp_path, "train.py", "steps=5", "hydra.run.dir=runs/first")
    assert stopped_after(report)
    assert report["facts"]["micro_batches_per_update"] == 5
    assert (tmp_path / "runs/first/.hydra/overrides.yaml").read_text() == "- steps=5\n"
    ended_cleanly(done)
    fails = ["train.py", "fails=true"]
    done, report = audit(tmp_path, *fails)
    assert (report["script_exit"], report["facts"]["updates"]) == (1, 2)
    alone = start(tmp_path, PYTHON, *fails)
    assert (done.returncode, alone.returncode) == (1, 1)
    assert alone.stderr.splitlines()[-4:] == done.stderr.splitlines()[-4:]
    assert "planted" in alone.stderr


def test_trl_sft(tmp_path):
    """A console script that starts Accelerate's launcher, which runs a script of TRL's own."""
    from tests.torch.audit.zoo.with_transformers import llama
    from tests.torch.audit.zoo.with_trl import words

    for each in (llama(), words()):
        each.save_pretrained(tmp_path / "model")
    chance = random.Random(0)
    texts = [" ".join(f"w{chance.randint(1, 18)}" for _ in range(chance.randint(3, 8))) for _ in range(64)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = "--model_name_or_path model --dataset_name data --output_dir out --report_to none --save_strategy no"
    batch = "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --use_cpu true --bf16 false"
    done, report = audit(
        tmp_path,
        "--target-batch=8",
        *["--", BESIDE / "trl", "sft", *files.split(), *batch.split()],
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hub"),
        ACCELERATE_USE_CPU="true",
    )
    assert stopped_after(report)
    assert report["facts"]["framework"] == "trl"
    assert report["facts"]["micro_batches_per_update"] == 4
    assert report["facts"]["effective_batch"] == 8
    ended_cleanly(done)
