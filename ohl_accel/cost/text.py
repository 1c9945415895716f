"""A cost in words, line by line."""

from ohl_accel.cost.estimate import GPUS, TABLE_4_BATCH, UTILIZATION, Cost, Gpu, between


def lines(cost: Cost) -> list[tuple[str, str]]:
    """What a run takes, in pairs of a name and a text, assumptions last."""
    recipe, facts, network, layout = cost.recipe, cost.facts, cost.network, cost.layout
    height, width = facts.schema.size
    processes = f"{layout.processes} {'process' if layout.processes == 1 else 'processes'}"
    where = "opened" if facts.is_here else "published numbers, not opened"
    found = [
        (
            "data",
            f"{recipe.data.path}: {facts.training_images:,} training and {facts.heldout_images:,} held-out images of "
            f"{facts.schema.channels} x {height} x {width}, {len(facts.schema.class_names)} classes ({where})",
        ),
        (
            "network",
            f"{recipe.model.name}: {network.parameters:,} parameters, {network.forward_flops / 1e9:.3g} GFLOP for an "
            "image forward",
        ),
        (
            "run",
            f"{cost.trajectories} x {recipe.outer.steps:,} outer steps of {cost.inner_steps:,} inner steps of "
            f"{recipe.inner.batch_size:,} images ({cost.epochs:.4g} epochs)",
        ),
        (
            "layout",
            f"{processes}, groups of {layout.group_size}; each hosts "
            f"{len(layout.hosted)} of {layout.trajectories} trajectories",
        ),
        ("images", f"{cost.images:,} trained on, {cost.scored_images:,} scored"),
        ("iterations", f"{cost.iterations:,.0f} at batch {TABLE_4_BATCH:,}, as Table 4 counts them"),
    ]
    others = cost.autoaugment_iterations
    if others is not None:
        found.append(
            ("", f"AutoAugment's search: {others:,.0f}, {others / cost.iterations:.1f} times as many")
        )
    found.append(("operations", f"{cost.flops:.3g} FLOP"))
    memory = ", ".join(f"{name} {_size(size)}" for name, size in cost.memory.items())
    found.append(("memory", f"about {_size(sum(cost.memory.values()))} for each process ({memory})"))
    found += [(gpu.name, _hours(cost, gpu)) for gpu in GPUS]
    low, high = (100 * share for share in UTILIZATION)
    found.append(
        (
            "assumed",
            f"{low:.0f} to {high:.0f} % of a GPU's peak are reached, one GPU for a process, prices between cheap and "
            "expensive offers; measure with --measure",
        )
    )
    return found


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _hours(cost: Cost, gpu: Gpu) -> str:
    low, high = cost.gpu_hours(gpu)
    wall = between(low / cost.layout.processes, high / cost.layout.processes)
    price = between(low * gpu.dollars[0], high * gpu.dollars[1])
    fits = sum(cost.memory.values()) <= gpu.gigabytes * 1e9
    return f"{between(low, high)} GPU hours, {wall} hours on {cost.layout.processes}, {price} US dollars" + (
        "" if fits else f"; needs more than its {gpu.gigabytes} GB: more processes or inner.micro_batches"
    )
