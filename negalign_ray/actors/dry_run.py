"""What a run would do, before anything starts: who sits where, the batch arithmetic, and the memory of each role."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from negalign_ray.actors.cluster import placements
from negalign_ray.actors.memory import GIB, role_memory
from negalign_ray.actors.plan import Plan


def describe(plan: Plan) -> RenderableType:
    return Group(roles_table(plan), Text(), *(Text(line) for line in batch_lines(plan)))


def roles_table(plan: Plan) -> Table:
    table = Table(title=f"{plan.config.run.name}: {plan.method.name} on {plan.config.model.path}", title_justify="left")
    for heading in ("role", "actors", "CPUs each", "GPUs each", "threads", "memory each"):
        table.add_column(heading, justify="left" if heading == "role" else "right")
    memory = {role: needed.total for role, needed in role_memory(plan).items()}
    for place in placements(plan):
        table.add_row(
            place.role,
            str(place.num),
            f"{place.cpus:g}",
            f"{place.gpus:g}",
            str(place.threads),
            f"{memory[place.role] / GIB:.1f} GiB",
        )
    total = sum(memory[place.role] * place.num for place in placements(plan))
    table.add_section()
    cpus = sum(place.cpus * place.num for place in placements(plan))
    gpus = sum(place.gpus * place.num for place in placements(plan))
    table.add_row("all", "", f"{cpus:g}", f"{gpus:g}", "", f"{total / GIB:.1f} GiB")
    return table


def batch_lines(plan: Plan) -> list[str]:
    """How the two batch numbers and the schedule turn into work, in plain words."""
    config = plan.config
    learners, sampling = config.learners, config.sampling
    groups, ranks = learners.groups_per_step, learners.num
    steps_per_pass = len(plan.data.train) / groups
    lines = [
        f"data: {len(plan.data.train)} prompts to train on, {len(plan.data.heldout)} held out; "
        f"{learners.steps} steps of {groups} prompts = {learners.steps / steps_per_pass:.1f} passes",
        f"batch: {groups} prompts a step over {ranks} rank(s) = about {groups / ranks:g} each; forward and backward in "
        f"micro-batches of at most {learners.micro_batch_tokens} tokens (the loss does not depend on it)",
        f"number types: samplers and references {plan.sampler_dtype}, learners compute in {plan.learner_dtype} "
        "with float32 master weights",
    ]
    if plan.data.left_out:
        lines.insert(1, f"left out: {plan.data.left_out}")
    if plan.num_samples:
        lines.append(
            f"sampling: {plan.num_samples} answers a prompt, up to {sampling.max_new_tokens} tokens each, under "
            f"{len(plan.instructions) or 'no'} instructions; {_schedule_words(plan)}"
        )
    if plan.candidates:
        lines.append(
            f"candidates: the newest {max(plan.candidates.max_candidates, plan.num_samples)} own answers of a prompt; "
            f"those of its earlier passes fill up this step's {plan.num_samples}"
        )
    return lines


def _schedule_words(plan: Plan) -> str:
    sampling = plan.config.sampling
    start = f"initial model before step {sampling.online_from_step}, then " if sampling.online_from_step else ""
    if sampling.schedule == "interval":
        follow = ", which the references follow" if plan.config.references.follow == "snapshot" else ""
        return f"{start}a new snapshot every {sampling.refresh_every} steps{follow}"
    if sampling.staleness == 0:
        return f"{start}strictly on-policy (sampling and training alternate)"
    return f"{start}at most {sampling.staleness} step(s) old (sampling and training overlap)"
