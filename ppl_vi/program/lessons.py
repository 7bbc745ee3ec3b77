"""What a failure of a user's program teaches: which site, what was expected and found, the remedy.

Pyro and torch say what went wrong in their own words, of which a person may know none. Each lesson here
knows one kind of mistake by what they say, and looks up the rest: the shapes, the parameters and the
arguments that took part.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.program.layout import PARTICLES, innermost
from ppl_vi.user_lines import raised_line

Numbered = Mapping[str, Tensor]


@dataclass(frozen=True)
class Call:
    """A call of a user's program.

    Attributes:
        program: a model or a guide.
        args: its arguments.
        kwargs: its keyword arguments.
        summed: the discrete sites that are run on all their states at once.
        rows: how many rows the arguments have, of how many in all, where they are a batch.
    """

    program: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    summed: Collection[str] = ()
    rows: tuple[int, int] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, by the names that the program gives them."""
        try:
            named = dict(inspect.signature(self.program).bind(*self.args, **self.kwargs).arguments)
        except (TypeError, ValueError):
            named = {f"data[{i}]": leaf for i, leaf in enumerate(self.args)} | dict(self.kwargs)
        for name, value in list(named.items()):  # *args and **kwargs
            if isinstance(value, tuple):
                named |= {f"{name}[{i}]": leaf for i, leaf in enumerate(value)}
            elif isinstance(value, dict):
                named |= value
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Scene:
    """A failure, and what was going on.

    Attributes:
        what: the program, in words.
        cause: the error.
        call: of the program.
        sites: the values of the sites reached so far, by name.
        subsampled: by plate that takes rows by itself, how many it takes of how many.
    """

    what: str
    cause: BaseException
    call: Call
    sites: Numbered = field(default_factory=dict)
    subsampled: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """What torch or Pyro said, in one line."""
        lines = str(self.cause).strip().splitlines()
        return lines[0].strip().rstrip(".: ") if lines else ""

    @property
    def where(self) -> str:
        """The program and its line."""
        line = raised_line(self.cause)
        return f"{self.what}, {line}" if line else self.what

    def says(self, *patterns: str) -> bool:
        """Whether the error's words match one of the patterns."""
        return any(re.search(pattern, self.said) for pattern in patterns)

    def frame(self, *names: str) -> Mapping[str, Any]:
        """The variables of the innermost function that failed and has these; empty for none."""
        frames = [frame.f_locals for frame, _ in traceback.walk_tb(self.cause.__traceback__)]
        return next((own for own in reversed(frames) if own.keys() >= set(names)), {})

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters so far, unconstrained."""
        return dict(pyro.get_param_store().named_parameters())


def taught(scene: Scene) -> str | None:
    """What the failure teaches, in one or two sentences; None where no lesson is known of it."""
    return next((found for lesson in _LESSONS if (found := lesson(scene))), None)


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


def _plate_mismatch(scene: Scene) -> str | None:
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


_WORDS: dict[Any, tuple[str, str]] = {
    "GreaterThan(lower_bound=0.0)": ("above 0", "positive"),
    "GreaterThanEq(lower_bound=0.0)": ("0 or more", "nonnegative"),
    "Interval(lower_bound=0.0, upper_bound=1.0)": ("between 0 and 1", "unit_interval"),
    "Simplex()": ("0 or more with sum 1", "simplex"),
    "PositiveDefinite()": ("a positive definite matrix", "positive_definite"),
    "LowerCholesky()": ("lower triangular with a positive diagonal", "lower_cholesky"),
    "Real()": ("a finite number", "real"),
}


def _impossible_parameter(scene: Scene) -> str | None:
    """A distribution with a scale of 0, a probability of 2, or a NaN."""
    frame = scene.frame("param", "constraint", "value", "valid", "self")
    if not frame or not scene.says("^Expected parameter"):
        return None
    value, constraint = frame["value"].detach(), _base(frame["constraint"])
    words, name = _WORDS.get(repr(constraint), (f"in {constraint}", ""))
    family, own = type(frame["self"]).__name__, frame["param"]
    bad = value[~frame["valid"]] if frame["valid"].shape == value.shape else value
    first = "NaN" if bad.isnan().any() else f"{bad.reshape(-1)[0].item():.4g}"
    found = f"{scene.where}: {own} of {family} is {first}, but it has to be {words}"
    parameter = _parameter_behind(frame["value"], scene.parameters)
    if parameter is not None:
        return f"{found}. {_start_inside(parameter, first, name)}"
    site = next((n for n, v in scene.sites.items() if _same(v, value)), None)
    if site is not None:
        return (
            f"{found}; it is the value of site '{site}'. Give '{site}' a prior on such numbers "
            f"(HalfNormal or Gamma for positive ones, Beta between 0 and 1), or transform it "
            f"first (.exp(), "
            f"torch.sigmoid)."
        )
    return (
        f"{found}. Transform what it is computed from (.exp() for positive numbers, "
        f"torch.sigmoid between "
        f"0 and 1), or start where it is possible (initial_values)."
    )


def _start_inside(parameter: str, found: str, constraint: str) -> str:
    start = {"positive": "0.1", "unit_interval": "0.5", "real": "0.0"}.get(constraint)
    if start is None:
        return (
            f"It comes from parameter '{parameter}': start that inside, and keep it there with "
            f"constraint=."
        )
    kept = "" if constraint == "real" else f", constraint=constraints.{constraint}"
    edge = "outside its constraint" if found == "NaN" else f"at {found}"
    return (
        f"It comes from parameter '{parameter}', which starts {edge}: start it inside, for instance "
        f"pyro.param('{parameter}', torch.tensor({start}){kept})."
    )


def _parameter_behind(value: Tensor, parameters: Numbered) -> str | None:
    """The parameter that a tensor is computed from, where it is only one."""
    leaves, nodes, seen = set(), [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [source for source, _ in node.next_functions]
            leaves |= {id(node.variable)} if hasattr(node, "variable") else set()
    store = pyro.get_param_store()
    names = [n for n, p in parameters.items() if id(p) in leaves or p is value]
    names = names or [n for n in parameters if _same(store[n].detach(), value.detach())]
    return names[0] if len(names) == 1 else None


def _numbers_of_two_sizes(scene: Scene) -> str | None:
    """float64 data and float32 parameters, in an operation that takes only one of them."""
    if not scene.says("dtype", "scalar type") or not scene.says("(?i)double|half|float64"):
        return None
    floating = {n: v.dtype for n, v in _known(scene).items() if v.is_floating_point()}
    listed = _by_kind(floating, lambda dtype: str(dtype))
    data = [n for n, v in scene.call.tensors.items() if v.dtype == torch.float64]
    convert = f"Pass {data[0]}.float()" if data else "Give all of them one dtype"
    return (
        f"{scene.where}: numbers of two precisions meet ({listed}). {convert}, or compute all "
        f"in float64: "
        f"torch.set_default_dtype(torch.float64) before the model, its parameters and the guide "
        f"are made."
    )


def _two_devices(scene: Scene) -> str | None:
    """Tensors of a GPU and of the CPU, or one without memory."""
    if not scene.says("(?i)devices?\\b", "meta tensor"):
        return None
    devices = {name: value.device for name, value in _known(scene).items()}
    where = _by_kind(devices, str) if len(set(devices.values())) > 1 else ""
    if not where:
        own = f"the arguments are on {next(iter(devices.values()))}, and " if devices else ""
        where = f"{own}a tensor that the program holds is elsewhere"
    return (
        f"{scene.where}: tensors on two devices meet ({where}; torch says: {scene.said}). Move "
        f"what the "
        f"program makes or holds to the device of the data, tensor.to(x.device), and the data with "
        f"fit(device=...)."
    )


def _float_labels(scene: Scene) -> str | None:
    """Labels used as an index, in floating-point numbers."""
    if not scene.says(
        "used as indices", "Expected dtype int", "index tensor", "scalar types: Long", "'indices'"
    ):
        return None
    suspects = {n: v for n, v in scene.call.tensors.items() if v.is_floating_point()}
    whole = [n for n, v in suspects.items() if v.dim() < 2 and bool((v == v.round()).all())]
    named = f"argument '{whole[0]}' is {suspects[whole[0]].dtype}" if whole else "they are not"
    label = whole[0] if whole else "labels"
    return (
        f"{scene.where}: labels that index a tensor have to be whole numbers, but {named}. Pass "
        f"{label}.long()."
    )


def _out_of_bounds(scene: Scene) -> str | None:
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


def _all_states_at_once(scene: Scene) -> str | None:
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
        f"{scene.where} cannot take all states of site '{name}' at once, as it is summed out: "
        f"its value "
        f"then has shape {shape}, the states on the left of the plates ({scene.said}). Use it "
        f"only in what "
        f"broadcasts (mean[{name}], torch.where, pyro.ops.indexing.Vindex), without reshape, squeeze, "
        f"stack, if, for or .item(); or draw it in the guide."
    )


_LESSONS: tuple[Callable[[Scene], str | None], ...] = (
    _plate_mismatch,
    _impossible_parameter,
    _float_labels,
    _out_of_bounds,
    _two_devices,
    _numbers_of_two_sizes,
    _all_states_at_once,
)


def _known(scene: Scene) -> dict[str, Tensor]:
    """Arguments, sites and parameters by name, in words."""
    groups: Iterable[tuple[str, Numbered]] = (
        ("argument", scene.call.tensors),
        ("site", scene.sites),
        ("parameter", scene.parameters),
    )
    return {f"{kind} '{name}'": v for kind, group in groups for name, v in group.items()}


def _by_kind(kinds: Mapping[str, Any], said: Callable[[Any], str]) -> str:
    """``kind: name, name`` for each kind, at most three names."""
    listed = []
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name, own in kinds.items() if own == kind]
        more = ", ..." if len(names) > 3 else ""
        listed.append(f"{said(kind)}: {', '.join(names[:3])}{more}")
    return "; ".join(listed)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.device != other.device or one.device.type == "meta":
        return False
    try:
        return one.numel() > 0 and bool(((one == other) | (one != one) & (other != other)).all())
    except (RuntimeError, TypeError, ValueError):  # sizes differ, or the algebra of moments refuses
        return False


def _base(constraint: Any) -> Any:
    independent: Any = constraints.independent
    return _base(constraint.base_constraint) if isinstance(constraint, independent) else constraint


def _count(number: int, noun: str) -> str:
    return noun if number == 1 else f"{number} {noun}s"
