"""What every loop begins with: the person's numbers, the imports, the constants, the mesh of ranks."""

from __future__ import annotations

from gradaccum.show.loop.template import join_lines
from gradaccum.units import show_bytes, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.plan import Plan
    from gradaccum.show.loop.form import Form

GPUS_PER_NODE = 8
"""The usual size of a node; a larger plan is launched on nodes of it."""

REDUCE_BYTES = 4
"""Bytes of a gradient element in float32, the reduce dtype that accumulation wants."""


def opening(form: Form) -> str:
    """The comment at the top: what one update is, and how to start the script."""
    return join_lines(_update_line(form), _gpus_line(form.plan), _start_line(form.plan))


def _update_line(form: Form) -> str:
    plan, unit = form.plan, form.unit
    ranks = ""
    if plan.num_gpus > 1:
        plural = "" if plan.data_parallel == 1 else "s"
        ranks = f" x {show_count(plan.data_parallel)} {'data-parallel rank' + plural if form.has_mesh else 'GPUs'}"
    whole = plan.accum_steps - 1 if form.is_uneven else plan.accum_steps
    steps = f"{show_count(plan.micro_batch)} {unit}{ranks} x {show_count(whole)} micro-steps"
    if form.is_uneven:
        rest = show_count(plan.effective_batch - whole * plan.device_batch)
        steps = f"{steps} + {rest} in one more" if whole else f"{rest} {unit} in one micro-step"
    batch = f"{show_count(plan.effective_batch)} {unit}"
    update = f"# One update: {steps} = {batch}{_wanted(plan.target_batch, plan.effective_batch)}."
    if plan.tokens_per_step is None or plan.sequence_length is None:
        return update
    tokens = f"{batch} x {show_count(plan.sequence_length)} tokens = {show_count(plan.tokens_per_step)} tokens"
    return f"{update}\n# {tokens}{_wanted(plan.target_tokens, plan.tokens_per_step)}."


def _wanted(target: int | None, got: int) -> str:
    return "" if target is None or target == got else f" ({show_count(target)} wanted)"


def _gpus_line(plan: Plan) -> str:
    if plan.data_parallel == plan.num_gpus:
        return ""
    degrees = [f"{show_count(size)} {word}" for word, _, _, size in degrees_of(plan) if size > 1]
    return f"# {show_count(plan.num_gpus)} GPUs: {' x '.join(degrees)} parallel."


def _start_line(plan: Plan) -> str:
    gpus = plan.num_gpus
    if gpus == 1:
        return "# Start it with: python train.py"
    if gpus <= GPUS_PER_NODE:
        return f"# Start it with: torchrun --nproc-per-node={gpus} train.py"
    nodes, per_node = "NODES", "GPUS_PER_NODE"
    if gpus % GPUS_PER_NODE == 0:
        nodes, per_node = str(gpus // GPUS_PER_NODE), str(GPUS_PER_NODE)
    return (
        f"# Start it on every node with: torchrun --nnodes={nodes} --nproc-per-node={per_node} \\\n"
        "#     --rdzv-backend=c10d --rdzv-endpoint=FIRST_NODE:29500 train.py"
    )


def imports(modules: list[str]) -> str:
    """The import lines in the usual order: the standard library, then torch; `import` before `from`."""
    ordered = sorted(modules, key=lambda line: (line[:4] == "from", line))
    standard = [line for line in ordered if "torch" not in line]
    torch = [line for line in ordered if "torch" in line]
    return "\n\n".join(["\n".join(group) for group in (standard, torch) if group])


def constants(form: Form) -> str:
    """The numbers of the plan, by the names that the code below them uses."""
    plan, unit = form.plan, form.unit
    lines = []
    if form.has_mesh:
        lines = [f"{name} = {size}" for _, _, name, size in _mesh_degrees(plan)]
        if plan.context_parallel > 1:
            lines.append("REPLICAS = DATA_PARALLEL * CONTEXT_PARALLEL  # ranks that see different tokens")
        if plan.pipeline_parallel > 1 and plan.virtual_pipeline > 1:
            lines.append(f"VIRTUAL_PIPELINE = {plan.virtual_pipeline}  # stages on each rank")
    elif plan.num_gpus > 1:
        lines = [f"NUM_GPUS = {plan.num_gpus}"]
    lines.append(f"MICRO_BATCH = {plan.micro_batch}  # {unit} in one forward and backward")
    lines.append(f"ACCUM_STEPS = {plan.accum_steps}  # micro-steps per update")
    if form.is_uneven:
        lines.append(f"TARGET_BATCH = {plan.effective_batch}  # {unit} per update")
    lines.append("CLIP_NORM = 1.0  # the largest norm of an update's gradient")
    if form.weighting == "tokens":
        lines.append("IGNORE = -100  # the target of a token that carries no loss")
    return "\n".join(lines)


def rank_names(form: Form) -> dict[str, str]:
    """What the text calls a sample, its data-parallel ranks, the ranks that average gradients, and its own rank."""
    data = "DATA_PARALLEL" if form.has_mesh else "NUM_GPUS"
    return {
        "unit": form.unit,
        "data_ranks": data,
        "replicas": "REPLICAS" if form.plan.context_parallel > 1 else data,
        "rank": 'mesh.get_local_rank("dp")' if form.has_mesh else "dist.get_rank()",
        "part": "    Of each sequence it holds the part of this rank." if form.plan.context_parallel > 1 else "",
    }


def mesh(form: Form) -> str:
    """The lines that start the process group and lay the ranks out, the outermost degree first."""
    shape, dims = "(NUM_GPUS,)", ""
    if form.has_mesh:
        present = _mesh_degrees(form.plan)
        shape = "(" + ", ".join([name for _, _, name, _ in present]) + ")"
        dims = ", mesh_dim_names=(" + ", ".join([f'"{dim}"' for _, dim, _, _ in present]) + ")"
    replicas = ""
    if form.has_mesh and form.reduces:
        flat = form.plan.context_parallel > 1  # flattening has no public name in PyTorch; torchtitan does it so too
        replicas = "replicas = " + ('mesh["dp", "cp"]._flatten("dp_cp")' if flat else 'mesh["dp"]')
    return join_lines(
        'device_type = "cuda" if torch.cuda.is_available() else "cpu"',
        'if device_type == "cuda":',
        '    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))',
        f"shape = {shape}" if form.has_mesh else "",
        f"mesh = init_device_mesh(device_type, {'shape' if form.has_mesh else shape}{dims})",
        'assert mesh.size() == dist.get_world_size(), "start one process for each GPU of the plan"',
        replicas,
    )


def deferred_bytes(plan: Plan) -> str:
    """What a GPU holds while FSDP2 defers the reduction: the unsharded gradient of its parameters, in the reduce dtype.

    In bytes where the plan knows the parameters, taken as spread evenly over pipeline stages and tensor ranks.
    """
    if plan.params is None:
        return f"{REDUCE_BYTES} bytes for each parameter on every GPU, with float32 as the reduce dtype"
    split = plan.tensor_parallel * plan.pipeline_parallel
    over = f" over {split} GPUs" if split > 1 else ""
    held = show_bytes(-(-plan.params * REDUCE_BYTES // split))
    return f"{held} on every GPU ({show_count(plan.params)} parameters{over}, {REDUCE_BYTES} bytes each in float32)"


def _mesh_degrees(plan: Plan) -> list[tuple[str, str, str, int]]:
    """The degrees that the mesh has as dimensions: all that are not 1, and data parallelism always."""
    return [each for each in degrees_of(plan) if each[3] > 1 or each[1] == "dp"]


def degrees_of(plan: Plan) -> tuple[tuple[str, str, str, int], ...]:
    """(word, mesh dimension, constant, size) of each degree, the outermost first: tensor ranks are neighbours."""
    return (
        ("pipeline", "pp", "PIPELINE_PARALLEL", plan.pipeline_parallel),
        ("data", "dp", "DATA_PARALLEL", plan.data_parallel),
        ("context", "cp", "CONTEXT_PARALLEL", plan.context_parallel),
        ("tensor", "tp", "TENSOR_PARALLEL", plan.tensor_parallel),
    )
