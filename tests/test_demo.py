"""The command line, as a new user meets it."""

import subprocess
import sys
from pathlib import Path

import arviz as az
import pytest

from ppl_vi.__main__ import main


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "ppl_vi", "demo", "--steps", "300", "--out", "written"]
    return folder / "written", subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_it_prints_the_table_the_bound_and_what_it_wrote(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = demo
    assert done.returncode == 0, done.stderr
    assert "hdi_3%" in done.stdout
    assert "ELBO -11" in done.stdout
    assert "ELBO" in done.stderr  # the progress bar
    assert "Warning" not in done.stderr
    for name in ("summary.txt", "posterior.nc", "elbo.png", "mixture.png"):
        assert (folder / name).stat().st_size > 0
        assert name in done.stdout


def test_the_posterior_has_its_groups(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    data = az.from_netcdf(str(demo[0] / "posterior.nc"))
    assert data["posterior"]["mu"].dims == ("chain", "draw", "component", "mu_dim_0")
    assert data["posterior"]["z"].shape == (1, 1_000, 272)
    assert data["log_likelihood"]["x"].shape == (1, 1_000, 272)
    assert data["posterior_predictive"]["x"].shape == (1, 1_000, 272, 2)
    assert data["observed_data"]["x"].shape == (272, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["dmo"], "dmo"),
        (["demo", "--components", "0"], "'0' is not a positive integer"),
        (["demo", "--steps", "many"], "'many' is not a positive integer"),
        (["demo", "--colour"], "--colour"),
        (["demo", "--out", "/dev/null/here", "--quiet"], "/dev/null/here"),
        (["demo", "--components", "300", "--quiet"], "fewer than the 300 components"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_two(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if "demo" in arguments and "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path)]
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_help_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("Old Faithful", "posterior.nc", "Example", "--out"))
