"""The C++ of loops that torch writes, with tensors that last from one turn to the next."""

from pathlib import Path

import pytest
import torch

from ppl_vi import fit
from ppl_vi.compilation import building
from ppl_vi.compilation.lasting import lasting

_CHECK = "AOTI_TORCH_ERROR_CODE_CHECK"
_MADE = f"""\
        static constexpr int64_t int_array_0[] = {{3L, }};
        AtenTensorHandle buf1_handle;
        {_CHECK}(aoti_torch_empty_strided(1, int_array_0, int_array_0, cached_torch_dtype_float32, \
cached_torch_device_type_cpu, this->device_idx_, &buf1_handle));
        RAIIAtenTensorHandle buf1(buf1_handle);
"""
_TURN = f"""\
    RAIIAtenTensorHandle carried = copied(arg0_1);
    while (1) {{
        AtenTensorHandle arg_handle;
        {_CHECK}(aoti_torch_assign_tensors_out(carried, &arg_handle));
        RAIIAtenTensorHandle arg(arg_handle);
{_MADE}        cpp_fused_add_0((const float*)(arg.data_ptr()), (float*)(buf1.data_ptr()));
        arg.reset();
%s        carried = std::move(%s);
    }}
    use(carried);
"""
_VIEW = """\
        auto view = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(buf1, 1, int_array_0, \
int_array_0, 0L));  // alias
"""


def turn(code: str) -> str:
    return code.split("while (1) {")[1].split("    }\n")[0]


def test_what_a_turn_makes_is_made_before_the_loop() -> None:
    code = lasting(_TURN % ("", "buf1"))
    before, _, _ = code.partition("while (1) {")
    assert "aoti_torch_empty_strided" in before and "aoti_torch_clone(carried" in before
    assert "aoti_torch" not in turn(code)
    assert "std::swap(carried, buf1);" in turn(code)  # what is read is not what is written


def test_a_view_that_is_handed_on_is_of_new_memory_in_each_turn() -> None:
    code = lasting(_TURN % (_VIEW, "view"))
    assert "aoti_torch_empty_strided" in turn(code) and "carried = std::move(view);" in turn(code)


def test_what_a_turn_was_handed_and_changed_stays_where_it_is() -> None:
    code = lasting(_TURN % ("", "arg"))
    assert "auto& arg = carried;" in turn(code)
    assert "std::move" not in code and "aoti_torch_clone" not in code


@pytest.mark.parametrize(
    "code",
    [
        _TURN % ("        something_new(buf1);\n", "buf1"),
        (_TURN % ("", "arg")).replace("assign_tensors_out(carried", "assign_tensors_out(other"),
    ],
    ids=["a line of an unknown kind", "an argument handed on in another place"],
)
def test_what_is_not_understood_stays(code: str) -> None:
    assert lasting(code) == code


@pytest.mark.slow
def test_torch_writes_loops_that_are_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where it has changed its ways, steps are slower and nothing else."""
    import pyro
    import pyro.distributions as dist

    seen: list[tuple[str, str]] = []

    def kept(code: str) -> str:
        seen.append((code, lasting(code)))
        return seen[-1][1]

    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        shape = pyro.sample(
            "shape", dist.Gamma(2.0, 2.0)
        )  # a draw that torch has no C function for
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, shape), obs=y)

    def guide(y: torch.Tensor) -> None:
        mean = pyro.param("mean", torch.tensor(0.0))
        rate = pyro.param("rate", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("loc", dist.Normal(mean, 0.5))
        pyro.sample("shape", dist.Gamma(rate, rate))

    monkeypatch.setenv("PPL_VI_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "_LOADED", {})
    monkeypatch.setattr("ppl_vi.compilation.lasting.lasting", kept)
    data = torch.arange(10.0)
    compiled, eager = (
        fit(model, guide, data, steps=25, compile=how, seed=0, progress=False)
        for how in (True, False)
    )
    assert any("while (1)" in code and turn(code) != turn(new) for code, new in seen)
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=1e-4, atol=1e-4)
