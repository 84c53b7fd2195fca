"""The statistics of the study against known cases, its grid, its claims and its page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not part of this copy")


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def stats():
    import study.stats

    return study.stats


@pytest.fixture
def grid():
    import study.grid

    return study.grid


@pytest.fixture
def run_files():
    return pytest.importorskip("run_files", exc_type=ImportError)  # fcntl: not on Windows


def test_bootstrap_of_equal_values_has_no_width(stats):
    assert stats.bootstrap_interval([1.5] * 5) == (1.5, 1.5)


def test_bootstrap_is_the_quantile_of_all_resamples(stats):
    """The ends of three values have a share of 1 / 27 in all samples, those of four 1 / 256: less than 2.5 %."""
    assert stats.bootstrap_interval([0.0, 1.0, 5.0]) == (0.0, 5.0)
    values = [0.0, 1.0, 5.0, 11.0]
    means = [np.mean([a, b, c, d]) for a in values for b in values for c in values for d in values]
    low, high = stats.bootstrap_interval(values)
    assert (low, high) == pytest.approx((np.quantile(means, 0.025), np.quantile(means, 0.975)), abs=0.3)
    assert low > 0
    assert stats.bootstrap_interval(values) == (low, high)  # seeded


def test_bootstrap_of_many_values_is_the_normal_interval(stats):
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    low, high = stats.bootstrap_interval(list(values))
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says(stats):
    random = np.random.default_rng(0)
    samples = [list(random.normal(0.0, 1.0, 40)) for _ in range(200)]
    intervals = [stats.bootstrap_interval(sample, resamples=500) for sample in samples]
    assert 0.90 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.98


def test_t_interval_by_hand(stats):
    low, high = stats.t_interval([1.0, 2.0, 3.0])  # mean 2, s 1, t 4.303
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))


def test_the_crossed_interval_sees_both_seeds_and_images(stats):
    random = np.random.default_rng(0)
    images, seeds = random.normal(0, 1, 400), random.normal(0, 1, 50)
    low, high = stats.crossed_interval(np.tile(images, (3, 1)))  # seeds that agree are no more images
    assert (high - low) / 2 == pytest.approx(1.96 * images.std() / 20, rel=0.05)
    low, high = stats.crossed_interval(np.tile(seeds[:, None], (1, 7)))
    assert (high - low) / 2 == pytest.approx(1.96 * seeds.std() / 50**0.5, rel=0.05)
    low, high = stats.crossed_interval(seeds[:, None] + images)
    both = (images.var() / 400 + seeds.var() / 50) ** 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * both, rel=0.05)
    assert stats.crossed_interval(np.ones((2, 5))) == (1.0, 1.0)


def test_differences_are_paired_by_seed(stats):
    base = {0: 10.0, 1: 50.0, 2: 90.0, 7: 0.0}
    ours = {seed: value + gain for (seed, value), gain in zip(base.items(), (1.0, 2.0, 3.0, 4.0), strict=True)}
    del ours[7]
    row = stats.paired_difference(ours, base)
    assert (row["seeds"], row["values"], row["mean"], row["deviation"]) == ([0, 1, 2], [1.0, 2.0, 3.0], 2.0, 1.0)
    assert row["t_interval"][0] < row["bootstrap"][0] <= row["bootstrap"][1] < row["t_interval"][1]
    five = stats.paired_difference({seed: 1.0 + seed for seed in range(5)}, dict.fromkeys(range(5), 0.0))
    assert five["t_interval"][0] < five["bootstrap"][0]  # what five seeds show is decided by the wider one
    assert "bootstrap" not in stats.paired_difference({0: 1.0}, {0: 0.5})
    assert stats.paired_difference({0: 1.0}, {1: 0.5}) is None


def test_correlations_of_known_cases(stats):
    x = [1.0, 2.0, 3.0, 4.0]
    assert stats.correlations(x, [2.0, 4.0, 6.0, 8.0]) == {"pearson": 1.0, "spearman": 1.0, "n": 4}
    assert stats.spearman(x, [1.0, 10.0, 100.0, 1000.0]) == pytest.approx(1)
    assert stats.pearson(x, [1.0, 10.0, 100.0, 1000.0]) < 0.9
    # With ranks 1, 2.5, 2.5, 4 on one side: 4.5 / sqrt(5 * 4.5).
    assert stats.spearman(x, [0.0, 5.0, 5.0, 9.0]) == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    assert stats.pearson(x, [3.0] * 4) is None
    assert stats.pearson([1.0, 2.0], [1.0, 2.0]) is None


def test_every_cell_has_one_key_and_can_be_made(grid):
    for part, make in grid.PARTS.items():
        cells = make()
        assert len({cell.key for cell in cells}) == len(cells)
        for cell in cells:
            if cell.missing() is None:
                assert (cell.make().contrastive is None) == (cell.contrastive is None), (part, cell.key)
    assert {cell.key for cell in grid.hosts(7)} & {cell.key for cell in grid.hosts()} == {
        cell.key for cell in grid.hosts() if cell.host == "nearest"
    }


def test_tables_name_declared_cells_only(grid):
    declared = {cell.key for make in grid.PARTS.values() for cell in make()}
    for levels in grid.ablation_tables().values():
        for pair in levels.values():
            assert {cell.key for cell in pair} <= declared
    for network in grid.RATE_NETWORKS:
        for factor in grid.RATE_FACTORS:
            assert grid.rate_key(network, "qdrop", factor, is_contrastive=True) in declared


def test_one_factor_of_an_ablation_differs_from_the_default(grid):
    default = grid.ablation({})
    for factor, levels in grid.FACTORS.items():
        cells = [grid.ablation(changes) for changes in levels.values()]
        assert default in cells or factor == "loss and read", factor
        assert len({cell.key for cell in cells}) == len(cells)


def test_rates_are_multiplied(grid):
    cells = {cell.name: cell for cell in grid.rates() if cell.network == "resnet20"}
    plain = grid.Cell("hosts", "resnet20", "w2a2-brecq", "brecq", 2, 2).make()
    double = cells["brecq-rate-x2"].make()
    assert double.phases[0].rounding_rate == 2 * plain.phases[0].rounding_rate
    assert double.phases[1] == plain.phases[1]


def test_a_run_is_done_once(run_files, tmp_path):
    path = tmp_path / "part" / "network" / "cell-seed0.json"
    with run_files.claimed(path) as first, run_files.claimed(path) as second:
        assert (first, second) == (True, False)
    with run_files.claimed(path) as again:  # the first one died without a result
        assert again
        path.write_text("{}")
    with run_files.claimed(path) as late:
        assert not late
    assert [file.name for file in path.parent.iterdir() if file.suffix != ".json"] == []


def row_of(cell, seed, accuracy, precision="bfloat16"):
    units = [{"name": "stem", "error": {"calibration": [2.0, 1.0], "held_out": [3.0, 2.0]}}]
    units[0]["bound"] = {"calibration": [1.0, 2.0], "held_out": [0.5, accuracy / 50]}
    numbers = {"test_top1": accuracy, "selection_top1": accuracy, "float_top1": 92.0, "cpu_seconds": 1.0}
    fields = ("network", "contrastive", "host", "steps", "calibration_images")
    place = {**{name: getattr(cell, name) for name in fields}, "units": units}
    where = {"commit": "abc", "torch": "2.x", "machine": "a machine", "precision": precision}
    return {"key": cell.key, "seed": seed, **numbers, **place, **where}


def write(run_files, folder, cell, seed, row):
    path = run_files.path_of(cell.key, seed, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))


def test_summary_and_page_of_made_up_runs(grid, run_files, tmp_path):
    import study.page
    import study.summary

    cells = [grid.ablation(None), grid.ablation({}), grid.ablation({"temperature": 0.1})]
    for gain, cell in enumerate(cells):
        for seed in range(5):
            write(run_files, tmp_path, cell, seed, row_of(cell, seed, 70.0 + 2 * gain + seed))
    result = study.summary.summarise(study.summary.read_runs(tmp_path, grid.STEPS), grid.STEPS)
    (host,) = result["hosts"]
    assert host["difference"]["bootstrap"] == [2.0, 2.0]
    assert [row["level"] for row in result["ablations"]["temperature"]] == ["0.05", "0.1", "0.2", "0.5", "1"]
    assert result["ablations"]["temperature"][1]["difference"]["mean"] == 4.0
    assert result["correlations"]["least unit"]["all"]["pearson"] == 1.0
    assert result["coverage"]["ablations"]["run"] == 9  # three seeds are declared
    page = study.page.page(result)
    plain, ours = "72.00 ± 1.58 (5 bf16)", "74.00 ± 1.58 (5 bf16)"
    assert f"| W2A2 | qdrop | {plain} | {ours} | **+2.00** [+2.00, +2.00] t [+2.00, +2.00] |" in page
    assert "not yet" in page
    assert "torch 2.x, a machine.  Commits of the runs: abc." in page


def test_differences_are_of_runs_with_the_same_precision(grid, run_files, tmp_path):
    """Seed 1 has float32 on one side; with it the mean would be +35."""
    import study.page
    import study.summary

    plain, ours = grid.ablation(None), grid.ablation({})
    for seed, (base, gain, precision) in {0: (70.0, 1.0, "bfloat16"), 2: (70.0, 3.0, "float32")}.items():
        write(run_files, tmp_path, plain, seed, row_of(plain, seed, base, precision))
        write(run_files, tmp_path, ours, seed, row_of(ours, seed, base + gain, precision))
    write(run_files, tmp_path, plain, 1, row_of(plain, 1, 0.0, "bfloat16"))
    write(run_files, tmp_path, ours, 1, row_of(ours, 1, 99.0, "float32"))
    runs = study.summary.read_runs(tmp_path, grid.STEPS)
    result = study.summary.summarise(runs, grid.STEPS)
    (host,) = result["hosts"]
    assert (host["difference"]["seeds"], host["difference"]["values"]) == ([0, 2], [1.0, 3.0])
    assert host["selection_difference"]["seeds"] == [0, 2]
    assert result["cells"][ours.key]["precisions"] == {"bfloat16": 1, "float32": 2}
    assert len(list(study.summary._changes(runs, min))) == 2
    page = study.page.page(result)
    assert "46.67 ± 40.41 (2 bf16 + 1 f32) | 81.00 ± 15.62 (1 bf16 + 2 f32)" in page
    assert "### Rates" not in page  # none was run


def test_two_equal_differences_are_not_in_bold(stats):
    import study.page

    two, three = (stats.paired_difference(dict.fromkeys(range(n), 1.0), dict.fromkeys(range(n), 1.5)) for n in (2, 3))
    assert study.page.difference(two) == "-0.50 [-0.50, -0.50] t [-0.50, -0.50]"
    assert study.page.difference(three).startswith("**-0.50** ")


def test_runs_of_which_none_are_alike_have_no_difference(grid):
    import study.summary

    plain, ours = grid.ablation(None), grid.ablation({})
    runs = {plain.key: {0: row_of(plain, 0, 70.0)}, ours.key: {0: row_of(ours, 0, 71.0, "float32")}}
    assert study.summary.compared(runs, ours.key, plain.key)["difference"] is None


def test_the_page_has_a_section_for_each_number_of_steps(grid, run_files, tmp_path):
    import study.page
    import study.summary

    nearest = grid.Cell("hosts", "resnet20", "w2a2-nearest", "nearest", 2, 2)
    write(run_files, tmp_path, nearest, 0, row_of(nearest, 0, 14.0))
    for steps in (grid.STEPS, 2000):
        for gain, changes in enumerate((None, {})):
            cell = grid.ablation(changes, steps=steps)
            write(run_files, tmp_path, cell, 0, row_of(cell, 0, 70.0 + gain * steps / 100, "float32"))
    assert study.summary.steps_in(tmp_path) == [grid.STEPS, 2000]
    assert study.summary.result_name(2000) == "study-steps-2000"
    results = [study.summary.summarise(study.summary.read_runs(tmp_path, n), n) for n in (grid.STEPS, 2000)]
    page = study.page.page(*results)
    first, second = page.index(f"## {grid.STEPS} steps"), page.index("## 2,000 steps")
    assert "| W2A2 | qdrop | 70.00 (1 f32) | 73.00 (1 f32) | +3.00 (1) |" in page[first:second]
    assert "| W2A2 | qdrop | 70.00 (1 f32) | 90.00 (1 f32) | +20.00 (1) |" in page[second:]
    assert "nearest rounding: W2A2 14.00 (1)." in page[second:]
    assert "not yet" not in page[second:]
    assert "### Ablations" not in page[second:]


@pytest.mark.parametrize("name", ["page.py", "methods.py"])
def test_the_pages_are_those_of_the_result(name):
    script = [sys.executable, str(FOLDER / "study" / name), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_best_rate_is_chosen_on_seeds_that_all_have(grid):
    """At each common seed x1 is better; its two other seeds are low."""
    import study.summary

    runs = {}
    for factor in grid.RATE_FACTORS:
        for own in (True, False):
            key = grid.rate_key("resnet20", "qdrop", factor, is_contrastive=own)
            cell = grid.Cell("hosts", "resnet20", key, "qdrop", 2, 2)
            values = {seed: 70.0 + seed - abs(factor - 1.0) for seed in range(3)}
            if factor == 1.0:
                values |= {3: 40.0, 4: 40.0}
            runs[key] = {seed: row_of(cell, seed, value) for seed, value in values.items()}
    best = [row for row in study.summary.rate_table(runs, grid.STEPS) if row["factor"] == "best"]
    assert [row["plain"] for row in best] == [grid.rate_key("resnet20", "qdrop", 1.0, is_contrastive=False)]


def test_other_steps_and_bounds_of_fewer_images_are_left_out(grid, run_files, tmp_path):
    import study.summary

    cells = [grid.ablation(None), grid.ablation(None, steps=10), grid.ablation(None, 32)]
    for cell in cells:
        write(run_files, tmp_path, cell, 0, row_of(cell, 0, 70.0))
    runs = study.summary.read_runs(tmp_path, grid.STEPS)
    assert set(runs) == {cells[0].key, cells[2].key}
    assert study.summary.bound_correlations(runs)["least unit"]["all"]["n"] == 1
