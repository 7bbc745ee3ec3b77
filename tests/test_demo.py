"""The command line, as a new user meets it."""

import subprocess
import sys
from pathlib import Path

import arviz as az
import numpy as np
import pytest
import torch
from PIL import Image

from ppl_vi.__main__ import main
from ppl_vi.datasets import old_faithful
from ppl_vi.diagnostics.pictures import elbo_curve, mixture_picture

Demo = tuple[Path, subprocess.CompletedProcess[str]]
FILES = ("summary.txt", "posterior.nc", "elbo.png", "mixture.png")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "ppl_vi", "demo", "--steps", "300", "--out", "new/written"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")
    return folder / "new" / "written", done


def test_it_prints_the_table_the_bound_and_what_it_wrote(demo: Demo) -> None:
    folder, done = demo
    assert done.returncode == 0, done.stderr
    assert (folder / "summary.txt").read_text() in done.stdout
    assert "ELBO -11" in done.stdout and " ± " in done.stdout
    assert "all the steps asked for were taken" in done.stdout
    for name in FILES:
        assert (folder / name).stat().st_size > 0
        assert str(Path("new", "written", name)) in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_the_console_has_the_bar_and_no_noise(demo: Demo) -> None:
    stderr = demo[1].stderr
    assert "300/300" in stderr and "ELBO" in stderr
    assert "Warning" not in stderr


def test_the_posterior_has_its_groups(demo: Demo) -> None:
    data = az.from_netcdf(str(demo[0] / "posterior.nc"))
    assert data["posterior"]["mu"].dims == ("chain", "draw", "component", "mu_dim_0")
    assert data["posterior"]["z"].shape == (1, 1_000, 272)
    assert data["log_likelihood"]["x"].shape == (1, 1_000, 272)
    assert data["posterior_predictive"]["x"].shape == (1, 1_000, 272, 2)
    observed = torch.as_tensor(data["observed_data"]["x"].values)
    assert torch.equal(observed, old_faithful())


def test_table_and_posterior_are_of_the_same_draws(demo: Demo) -> None:
    data = az.from_netcdf(str(demo[0] / "posterior.nc"))
    table = az.summary(data, var_names=["~z"], kind="stats").to_string()
    written = (demo[0] / "summary.txt").read_text().splitlines()
    rows = [line.split() for line in table.splitlines()]
    assert sorted(rows) == sorted(line.split() for line in written[: len(rows)])


@pytest.mark.parametrize("name", ["elbo.png", "mixture.png"])
def test_the_pictures_suit_a_readme(demo: Demo, name: str) -> None:
    with Image.open(demo[0] / name) as picture:
        assert 900 <= picture.width <= 1_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dmo"], "dmo"),
        (["demo", "--components", "0"], "--components: '0' is not a positive integer"),
        (["demo", "--components", "2.5"], "--components: '2.5' is not a positive integer"),
        (["demo", "--steps", "-1"], "--steps: '-1' is not a positive integer"),
        (["demo", "--steps", "many"], "--steps: 'many' is not a positive integer"),
        (["demo", "--seed", "-1"], "--seed: '-1' is not an integer from 0 to 4294967295"),
        (["demo", "--seed", "4294967296"], "--seed: '4294967296' is not an integer from 0"),
        (["demo", "--colour"], "--colour"),
        (["demo", "--out", "/dev/null/here", "--quiet"], "cannot write to /dev/null/here: Not a"),
        (["demo", "--out", "/dev/null", "--quiet"], "cannot write to /dev/null: File exists"),
        (["demo", "--components", "300", "--quiet"], "fewer than the 300 components"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_two(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if "--out" not in arguments and "demo" in arguments:
        arguments = [*arguments, "--out", str(tmp_path)]
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("python -m ppl_vi")
    assert said in lines[0]


def test_a_mistake_of_our_own_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("ppl_vi.demo.fit", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["demo", "--out", str(tmp_path)])


def test_without_a_command_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    explains(capsys.readouterr().out)


def test_help_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--help"])
    assert stopped.value.code == 0
    explains(text := capsys.readouterr().out)
    assert all(o in text for o in ("--out", "--components", "--steps", "--seed", "--quiet"))


def explains(text: str) -> None:
    assert all(word in text for word in ("Old Faithful", *FILES, "Example"))


def test_the_elbo_curve_leaves_out_wild_and_missing_steps() -> None:
    settled = -100.0 + 0.1 * torch.randn(500)
    wild = torch.tensor([-1e9, float("nan"), -1e6, float("-inf")])
    axes = elbo_curve(-torch.cat([wild, settled]), elbo=-100.0).axes[0]
    low, high = axes.get_ylim()
    assert -101.5 < low < -100 < high < -98.5
    mean = axes.get_lines()[1].get_ydata()
    assert len(mean) == 502  # the two that are finite, and all that came after
    assert np.abs(mean[50:] + 100).max() < 0.1


def test_an_elbo_curve_of_one_step() -> None:
    assert elbo_curve(torch.tensor([3.0]), elbo=-3.0).axes[0].get_xlim() == (0, 1)


def test_the_mixture_picture_shows_two_sigma_and_responsibilities() -> None:
    """One component with correlation 0.6: the ellipse touches the box mean ± 2 sigma."""
    means = torch.tensor([1.0, -2.0]).expand(3, 2, 2)
    covariances = torch.tensor([[4.0, 0.6], [0.6, 0.25]]).expand(3, 2, 2, 2)
    responsibilities = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    axes = mixture_picture(
        torch.randn(3, 2), means, covariances, torch.ones(3, 2) / 2, responsibilities, ("x", "y")
    ).axes[0]
    ellipse = axes.patches[0]
    outline = ellipse.get_patch_transform().transform(ellipse.get_path().vertices)
    box = ellipse.get_path().transformed(ellipse.get_patch_transform()).get_extents()
    assert box.bounds == pytest.approx((1 - 4, -2 - 1, 8, 2), rel=1e-3), outline
    blue, orange, between = axes.collections[0].get_facecolors()[:, :3]
    assert ((between > np.minimum(blue, orange)) & (between < np.maximum(blue, orange))).all()


@pytest.mark.parametrize("num_components", [1, 3, 12])
def test_the_legend_of_the_mixture_picture(num_components: int) -> None:
    k = num_components
    figure = mixture_picture(
        torch.randn(9, 2),
        torch.randn(5, k, 2),
        torch.eye(2).expand(5, k, 2, 2),
        torch.full((5, k), 1 / k),
        torch.full((9, k), 1 / k),
        ("x", "y"),
    )
    legend = figure.axes[0].get_legend() or figure.legends[0]
    names = [text.get_text() for text in legend.get_texts()]
    assert names.count(f"weight {1 / k:.2f} ± 0.00") == min(k, 8)
    assert ("and 4 more" in names) == (k == 12)
