"""The trainers that `trainer_settings` writes for: how each spells the numbers of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.show.settings import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Keys = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Trainer:
    """How one trainer spells a plan.

    language: of the text; json, python, shell, toml or yaml. write: makes the text of (section, key, value).
    keys: (section, key, our name); our names are in `plan_values`. A value that does not apply leaves its key out.
    degrees: the model parallelism that the trainer's batch arithmetic knows.
    note: what to know, with our names in braces. source: where the keys are documented.
    pipeline_keys: the keys for a plan with a pipeline, where they differ.
    splits_batch: it cuts each GPU's share of the batch itself, so that the last micro-step may be smaller.
    """

    name: str
    language: str
    write: Callable[[write.Pairs], str]
    keys: Keys
    degrees: tuple[str, ...]
    note: str
    source: str
    pipeline_keys: Keys = ()
    splits_batch: bool = False


TRAINERS = (
    Trainer(
        "Hugging Face Trainer",
        "python",
        write.calls,
        (
            ("TrainingArguments(", "per_device_train_batch_size", "micro_batch"),
            ("TrainingArguments(", "gradient_accumulation_steps", "accum_steps"),
        ),
        ("tensor", "context"),
        "It has no key for the whole batch: {effective_batch} follows from {data_parallel} data-parallel processes.",
        "https://huggingface.co/docs/transformers/main_classes/trainer",
    ),
    Trainer(
        "TRL",
        "python",
        write.calls,
        (
            ("SFTConfig(", "per_device_train_batch_size", "micro_batch"),
            ("SFTConfig(", "gradient_accumulation_steps", "accum_steps"),
            ("SFTConfig(", "max_length", "sequence_length"),
        ),
        ("tensor", "context"),
        "Only packing=True fills the sequences. DPO and reward trainers count pairs, GRPO counts completions.",
        "https://huggingface.co/docs/trl/sft_trainer",
    ),
    Trainer(
        "Accelerate",
        "python",
        write.calls,
        (
            ("accelerator = Accelerator(", "gradient_accumulation_steps", "accum_steps"),
            ("loader = DataLoader(dataset, ", "batch_size", "micro_batch"),
        ),
        ("tensor", "context"),
        "accelerator.backward divides every loss by {accum_steps}, in a shorter last group too, and knows no tokens.",
        "https://huggingface.co/docs/accelerate/usage_guides/gradient_accumulation",
    ),
    Trainer(
        "DeepSpeed",
        "json",
        write.json_object,
        (
            ("", "train_micro_batch_size_per_gpu", "micro_batch"),
            ("", "gradient_accumulation_steps", "accum_steps"),
        ),
        ("tensor", "pipeline", "context"),
        "train_batch_size is left out, since it follows: {effective_batch} if DeepSpeed sees {data_parallel} "
        "data-parallel ranks.",
        "https://www.deepspeed.ai/docs/config-json/",
    ),
    Trainer(
        "Lightning",
        "python",
        write.calls,
        (
            ("trainer = Trainer(", "accumulate_grad_batches", "accum_steps"),
            ("trainer = Trainer(", "devices", "devices"),
            ("trainer = Trainer(", "num_nodes", "nodes"),
            ("loader = DataLoader(dataset, ", "batch_size", "micro_batch"),
        ),
        ("tensor",),
        "A shorter last group is divided by {accum_steps} too, so that it counts too little.",
        "https://lightning.ai/docs/pytorch/stable/advanced/training_tricks.html",
    ),
    Trainer(
        "Megatron-LM",
        "shell",
        write.flags,
        (
            ("", "micro-batch-size", "micro_batch"),
            ("", "global-batch-size", "effective_batch"),
            ("", "seq-length", "sequence_length"),
            ("", "tensor-model-parallel-size", "tensor_parallel"),
            ("", "pipeline-model-parallel-size", "pipeline_parallel"),
            ("", "num-virtual-stages-per-pipeline-rank", "virtual_pipeline"),
            ("", "context-parallel-size", "context_parallel"),
        ),
        ("tensor", "pipeline", "context"),
        "It derives the {accum_steps} micro-steps. The samples after the last full batch are dropped.",
        "https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/training/arguments.py",
    ),
    Trainer(
        "torchtitan, to 0.3.0",
        "toml",
        write.toml,
        (
            ("training", "local_batch_size", "micro_batch"),
            ("training", "global_batch_size", "effective_batch"),
            ("training", "seq_len", "sequence_length"),
            ("parallelism", "tensor_parallel_degree", "tensor_parallel"),
            ("parallelism", "context_parallel_degree", "context_parallel"),
        ),
        ("tensor", "pipeline", "context"),
        "Newer versions count in tokens: see the next entry. The loss is divided by the tokens of the whole update.",
        "https://github.com/pytorch/torchtitan/blob/v0.2.2/torchtitan/config/job_config.py",
        pipeline_keys=(
            ("training", "local_batch_size", "rank_batch"),
            ("training", "global_batch_size", "effective_batch"),
            ("training", "seq_len", "sequence_length"),
            ("parallelism", "pipeline_parallel_degree", "pipeline_parallel"),
            ("parallelism", "pipeline_parallel_microbatch_size", "micro_batch"),
            ("parallelism", "tensor_parallel_degree", "tensor_parallel"),
            ("parallelism", "context_parallel_degree", "context_parallel"),
        ),
    ),
    Trainer(
        "torchtitan, since August 2026",
        "shell",
        write.flags,
        (
            ("", "training.num_tokens_per_microbatch_per_dp_rank", "micro_tokens"),
            ("", "training.num_tokens_per_train_step", "update_tokens"),
            ("", "training.max_context_length", "sequence_length"),
            ("", "parallelism.tensor_parallel_degree", "tensor_parallel"),
            ("", "parallelism.context_parallel_degree", "context_parallel"),
        ),
        ("tensor", "pipeline", "context"),
        "It counts in tokens, and wants those of a micro-batch to be a multiple of the tensor degree and of twice the "
        "context degree.",
        "https://github.com/pytorch/torchtitan/pull/4121",
        pipeline_keys=(
            ("", "training.num_tokens_per_microbatch_per_dp_rank", "micro_tokens"),
            ("", "training.num_tokens_per_train_step", "update_tokens"),
            ("", "training.max_context_length", "sequence_length"),
            ("", "parallelism.num_pp_microbatches", "accum_steps"),
            ("", "parallelism.pipeline_parallel_degree", "pipeline_parallel"),
            ("", "parallelism.tensor_parallel_degree", "tensor_parallel"),
            ("", "parallelism.context_parallel_degree", "context_parallel"),
        ),
    ),
    Trainer(
        "Axolotl",
        "yaml",
        write.yaml,
        (
            ("", "micro_batch_size", "micro_batch"),
            ("", "gradient_accumulation_steps", "accum_steps"),
            ("", "sequence_len", "sequence_length"),
            ("", "tensor_parallel_size", "tensor_parallel"),
            ("", "context_parallel_size", "context_parallel"),
        ),
        ("tensor", "context"),
        "Take batch_size out of the file: it does not set the accumulation, and the step count reads it.",
        "https://docs.axolotl.ai/docs/config-reference.html",
    ),
    Trainer(
        "LLaMA-Factory",
        "yaml",
        write.yaml,
        (
            ("", "per_device_train_batch_size", "micro_batch"),
            ("", "gradient_accumulation_steps", "accum_steps"),
            ("", "cutoff_len", "sequence_length"),
        ),
        (),
        "With packing the sequences are one token shorter than cutoff_len.",
        "https://github.com/hiyouga/LlamaFactory/tree/main/examples",
    ),
    Trainer(
        "litgpt",
        "shell",
        write.flags,
        (
            ("", "train.micro_batch_size", "micro_batch"),
            ("", "train.global_batch_size", "effective_batch"),
            ("", "train.max_seq_length", "sequence_length"),
            ("", "devices", "devices"),
            ("", "num_nodes", "nodes"),
        ),
        (),
        "It divides by {num_gpus} GPUs and by the micro-batch and floors in silence: another GPU count, another batch.",
        "https://github.com/Lightning-AI/litgpt/blob/main/litgpt/args.py",
    ),
    Trainer(
        "nanotron",
        "yaml",
        write.yaml,
        (
            ("parallelism", "dp", "data_parallel"),
            ("parallelism", "tp", "tensor_degree"),
            ("parallelism", "pp", "pipeline_degree"),
            ("parallelism", "context_parallel_size", "context_parallel"),
            ("tokens", "micro_batch_size", "micro_batch"),
            ("tokens", "batch_accumulation_per_replica", "accum_steps"),
            ("tokens", "sequence_length", "sequence_length"),
        ),
        ("tensor", "pipeline", "context"),
        "The degrees must multiply to the {num_gpus} GPUs that it is started on.",
        "https://github.com/huggingface/nanotron/blob/main/src/nanotron/config/config.py",
    ),
    Trainer(
        "Composer, LLM Foundry",
        "yaml",
        write.yaml,
        (
            ("", "global_train_batch_size", "effective_batch"),
            ("", "device_train_microbatch_size", "micro_batch"),
            ("", "max_seq_len", "sequence_length"),
        ),
        (),
        "It cuts each GPU's share into micro-batches itself, and weighs a smaller last one by its samples or tokens.",
        "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/README.md",
        splits_batch=True,
    ),
    Trainer(
        "torchtune",
        "shell",
        write.overrides,
        (
            ("", "batch_size", "micro_batch"),
            ("", "gradient_accumulation_steps", "accum_steps"),
            ("", "tokenizer.max_seq_len", "sequence_length"),
            ("", "tensor_parallel_dim", "tensor_parallel"),
            ("", "context_parallel_dim", "context_parallel"),
        ),
        ("tensor", "context"),
        "Micro-batches at the end of an epoch that fill no group go into the next epoch in 0.6.1; main drops them.",
        "https://github.com/meta-pytorch/torchtune/tree/main/recipes/configs",
    ),
    Trainer(
        "NeMo 2",
        "python",
        write.calls,
        (
            ("data = PreTrainingDataModule(paths, ", "micro_batch_size", "micro_batch"),
            ("data = PreTrainingDataModule(paths, ", "global_batch_size", "effective_batch"),
            ("data = PreTrainingDataModule(paths, ", "seq_length", "sequence_length"),
            ("strategy = MegatronStrategy(", "tensor_model_parallel_size", "tensor_parallel"),
            ("strategy = MegatronStrategy(", "pipeline_model_parallel_size", "pipeline_parallel"),
            ("strategy = MegatronStrategy(", "virtual_pipeline_model_parallel_size", "virtual_pipeline"),
            ("strategy = MegatronStrategy(", "context_parallel_size", "context_parallel"),
        ),
        ("tensor", "pipeline", "context"),
        "It derives the {accum_steps} micro-steps; accumulate_grad_batches of the Trainer stays 1.",
        "https://docs.nvidia.com/nemo-framework/user-guide/latest/nemotoolkit/features/parallelisms.html",
    ),
    Trainer(
        "NeMo Automodel",
        "yaml",
        write.yaml,
        (
            ("step_scheduler", "local_batch_size", "micro_batch"),
            ("step_scheduler", "global_batch_size", "effective_batch"),
            ("distributed", "tp_size", "tensor_parallel"),
            ("distributed", "cp_size", "context_parallel"),
        ),
        ("tensor", "pipeline", "context"),
        "It derives the micro-steps from {data_parallel} data-parallel ranks.",
        "https://github.com/NVIDIA-NeMo/Automodel",
        pipeline_keys=(
            ("step_scheduler", "local_batch_size", "rank_batch"),
            ("step_scheduler", "global_batch_size", "effective_batch"),
            ("distributed", "tp_size", "tensor_parallel"),
            ("distributed", "cp_size", "context_parallel"),
            ("distributed", "pp_size", "pipeline_parallel"),
            ("distributed.pipeline", "pp_microbatch_size", "micro_batch"),
        ),
    ),
    Trainer(
        "nanoGPT",
        "python",
        write.assignments,
        (
            ("", "batch_size", "micro_batch"),
            ("", "gradient_accumulation_steps", "all_steps"),
            ("", "block_size", "sequence_length"),
        ),
        (),
        "Its gradient_accumulation_steps is the total over all GPUs: {accum_steps} on each of {num_gpus}.",
        "https://github.com/karpathy/nanoGPT/blob/master/train.py",
    ),
    Trainer(
        "nanochat",
        "shell",
        write.flags,
        (
            ("", "device-batch-size", "micro_batch"),
            ("", "total-batch-size", "update_tokens"),
            ("", "max-seq-len", "sequence_length"),
        ),
        (),
        "total-batch-size is in tokens.",
        "https://github.com/karpathy/nanochat/blob/master/scripts/base_train.py",
    ),
)
