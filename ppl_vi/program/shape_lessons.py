"""What is taught of shapes: events, plates, batches, and the states of discrete sites."""

from __future__ import annotations

import re

from ppl_vi.program.layout import PARTICLES, innermost
from ppl_vi.program.scene import Scene


def undeclared(what: str, name: str, family: str, shape: tuple[int, ...], dims: list[int]) -> str:
    """That dimensions of a site's batch shape are declared by no plate."""
    sizes = {dim: shape[dim] for dim in dims}
    told = " and ".join(f"dimension {dim} of size {size}" for dim, size in sizes.items())
    plates = " and ".join(
        f"pyro.plate('{name}_plate', {size}, dim={dim})" for dim, size in sizes.items()
    )
    rightmost = dims == list(range(-len(dims), 0))
    event = (
        f"If that is one value with several entries, add .to_event({len(dims)}); if"
        if rightmost
        else "If"
    )
    return (
        f"site '{name}' of {what}: its distribution ({family}) has batch shape {shape}, but no "
        f"pyro.plate declares {told}. {event} its elements are independent, put the site in {plates}."
    )


def plate_mismatch(scene: Scene) -> str | None:
    """A batch shape that does not go with a plate: .to_event() forgotten, or a plate of "
    "another size."""
    frame = scene.frame("actual_batch_shape", "target_batch_shape", "msg", "f")
    if not frame or scene.call.summed:
        return None
    message, plate, shape = frame["msg"], frame["f"], tuple(frame["actual_batch_shape"])
    name, family = message["name"], type(innermost(message["fn"])).__name__
    if plate.name == PARTICLES:
        return undeclared(scene.what, name, family, shape, [plate.dim])
    found = (
        f"site '{name}' of {scene.where}: its distribution ({family}) has batch shape {shape}, "
        f"but plate "
        f"'{plate.name}' needs {plate.size} at dimension {plate.dim}, not {shape[plate.dim]}"
    )
    size, num_rows = scene.call.rows or (None, None)
    if plate.full_size not in (None, plate.size) and shape[plate.dim] == plate.full_size:
        return (
            f"{found}. The plate has the rows of a batch: take theirs, as in with "
            f"pyro.plate('{plate.name}', {plate.full_size}) as rows: ... values[rows]."
        )
    if plate.size == num_rows and shape[plate.dim] == size:
        return f"{found}. {batch_remedy(plate.name, num_rows, size)}"
    if size is not None and shape[plate.dim] == size:
        return f"{found}. Give the plate the size of the batch: pyro.plate('{plate.name}', len(batch))."
    right = next(
        (k for k in range(1, len(shape)) if shape[plate.dim - k :][:1] == (plate.size,)), 0
    )
    if right:
        last = _count(right, "dimension")
        return f"{found}. Declare the last {last} as part of one value: .to_event({right})."
    last = _count(-plate.dim, "dimension")
    return (
        f"{found}. If the last {last} is part of one value, add .to_event({-plate.dim}); else give the "
        f"plate and the distribution the same size."
    )


def batch_remedy(plate: str, num_rows: int | None, size: int | None) -> str:
    """How a plate over all rows goes with batches of them."""
    return (
        f"The plate counts all {num_rows} rows, but a batch has {size}. Write "
        f"pyro.plate('{plate}', {num_rows}, subsample_size=len(batch)), or "
        f"pyro.plate('{plate}', len(batch)): fit counts a batch for all rows."
    )


def out_of_bounds(scene: Scene) -> str | None:
    """An index beyond the end: rows of all data in a batch, or labels that count from 1."""
    if not scene.says("out of bounds", "out of range", "invalid shape of pyro.subsample"):
        return None
    size, num_rows = scene.call.rows or (None, None)
    for plate, (taken, full) in scene.subsampled.items():
        if num_rows is not None and full == num_rows:
            return (
                f"{scene.where}: plate '{plate}' takes {taken} of {full} rows by itself, but "
                f"the data are a "
                f"batch of {size} rows already. Let fit subsample alone: "
                f"pyro.plate('{plate}', {full}, subsample_size=len(batch)) with the batch as it is (no "
                f"[index]), or leave batch_size out."
            )
    told = re.search(
        r"index (-?\d+) is out of bounds for dimension -?\d+ with size (\d+)", scene.said
    )
    integers = {
        n: v for n, v in scene.call.tensors.items() if not v.is_floating_point() and v.numel()
    }
    for name, value in integers.items() if told else ():
        if told and int(value.max()) >= int(told[2]):
            return (
                f"{scene.where}: argument '{name}' has values from {int(value.min())} to "
                f"{int(value.max())}, "
                f"but indexes a dimension of size {told[2]}, whose labels are 0 to "
                f"{int(told[2]) - 1}. Count "
                f"the labels from 0, or make that dimension (its plate) larger."
            )
    return None


def all_states_at_once(scene: Scene) -> str | None:
    """A program that cannot take a discrete site on all its states at once."""
    if not scene.call.summed or isinstance(scene.cause, NameError | AttributeError):
        return None
    met = {n: tuple(v.shape) for n, v in scene.sites.items() if n in scene.call.summed}
    name, shape = next(reversed(met.items()), ("", ()))
    if not name:
        return None
    if scene.says("up to 64 dims", "too many dim", "max_plate_nesting|max_iarange"):
        return (
            f"{scene.where}: each of the {len(scene.call.summed)} discrete sites that are "
            f"summed out, such "
            f"as '{name}', takes a dimension of its own, and torch has 64. Write the loop over "
            f"them with "
            f"pyro.markov, so that they share dimensions, or draw them in the guide."
        )
    return (
        f"{scene.where} cannot take all states of site '{name}' at once, as it is summed out: its "
        f"value then has {shape[0] if shape else 1} states in a dimension on the left of the plates "
        f"({scene.said}). Use it only in what broadcasts (mean[{name}], torch.where, "
        f"pyro.ops.indexing.Vindex), without reshape, squeeze, stack, if, for or .item(); or draw it "
        f"in the guide."
    )


def _count(number: int, noun: str) -> str:
    return noun if number == 1 else f"{number} {noun}s"
