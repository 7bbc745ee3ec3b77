"""What is taught of numbers: impossible ones, and those of another precision, device or kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.program.scene import Numbered, Scene

_WORDS: dict[Any, tuple[str, str]] = {
    "GreaterThan(lower_bound=0.0)": ("above 0", "positive"),
    "GreaterThanEq(lower_bound=0.0)": ("0 or more", "nonnegative"),
    "Interval(lower_bound=0.0, upper_bound=1.0)": ("between 0 and 1", "unit_interval"),
    "Simplex()": ("0 or more with sum 1", "simplex"),
    "PositiveDefinite()": ("a positive definite matrix", "positive_definite"),
    "LowerCholesky()": ("lower triangular with a positive diagonal", "lower_cholesky"),
    "Real()": ("a finite number", "real"),
}


def impossible_parameter(scene: Scene) -> str | None:
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
    if family == "Unit":
        found = f"{scene.where}: pyro.factor adds {first}, which has to be {words}"
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


def numbers_of_two_sizes(scene: Scene) -> str | None:
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


def two_devices(scene: Scene) -> str | None:
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


def float_labels(scene: Scene) -> str | None:
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
