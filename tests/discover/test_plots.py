"""Pictures: the files they leave, what stands in them, and what they refuse."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from gpprune.discover.plots import allocation_figure, save_figure, search_figure
from gpprune.errors import GppruneError, UsageError

SVG = "{http://www.w3.org/2000/svg}"
ROLES = ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"] * 4
BLOCKS = [block for block in range(4) for _ in range(3)]
SIZES = [64, 16, 160] * 4
LAYERS: dict[str, Any] = {"roles": ROLES, "blocks": BLOCKS, "sizes": SIZES}
UNIFORM = [0.7] * 12
RISING = [0.55 + 0.1 * block for block in BLOCKS]
MIXED = [0.2, 0.4, 0.9] * 4
ALLOCATIONS = {"uniform": UNIFORM, "_rising $x$ of a&b": RISING, "by role": MIXED}
SEARCHES = {
    "first": [(1, 90.0), (4, 60.0), (10, 50.0)],
    "second": [(2, 80.0), (6, 70.0), (12, 40.0)],
    "third": [(1, float("inf")), (3, 100.0), (11, 45.0)],
}
GROUPS = {"first": "evolution", "second": "evolution", "third": "random"}


def allocations(path: Path, chosen: dict[str, list[float]] | None = None) -> list[Path]:
    drawn = allocation_figure(chosen or ALLOCATIONS, **LAYERS, target=0.7, title="A title")
    return save_figure(drawn, path)


def searches(
    path: Path, chosen: dict[str, Any] | None = None, groups: dict[str, str] | None = None
) -> list[Path]:
    drawn = search_figure(chosen or SEARCHES, title="Searches", groups=groups)
    return save_figure(drawn, path)


def texts(file: Path) -> list[str]:
    """The texts of an SVG in the order in which they were drawn."""
    return ["".join(node.itertext()) for node in ElementTree.parse(file).iter(f"{SVG}text")]


def paths_of(file: Path, colour: str) -> list[np.ndarray]:
    """The lines of a colour in an SVG, points `[n, 2]` each; `y` grows downwards."""
    found = []
    for node in ElementTree.parse(file).iter(f"{SVG}path"):
        if f"stroke: {colour}" in node.get("style", "") and "fill: none" in node.get("style", ""):
            numbers = re.findall(r"[-\d.]+", node.get("d", ""))
            found.append(np.array(numbers, dtype=np.float64).reshape(-1, 2))
    return found


def shape_of(png: Path) -> tuple[int, int]:
    """Width and height of a PNG whose every chunk is whole."""
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, kinds, packed = 8, [], b""
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunk = data[place + 4 : place + 8 + length]
        (sum_,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert zlib.crc32(chunk) == sum_
        kinds.append(chunk[:4])
        packed += chunk[4:] if chunk[:4] == b"IDAT" else b""
        place += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    width, height = struct.unpack(">II", data[16:24])
    assert len(zlib.decompress(packed)) == height * (4 * width + 1)  # RGBA, a filter byte a row
    return width, height


def test_allocations_leave_a_png_and_an_svg_in_a_new_folder(tmp_path: Path) -> None:
    stem = tmp_path / "new" / "folder" / "sparsity"
    written = allocations(stem)
    assert written == [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    assert sorted(stem.parent.iterdir()) == sorted(written), "no draft is left"
    width, height = shape_of(written[0])
    assert width == 1800
    assert 900 < height < 1800


def test_every_name_is_text_in_the_svg_in_the_order_given(tmp_path: Path) -> None:
    shown = texts(allocations(tmp_path / "a")[1])
    names = [*ALLOCATIONS, "target 70 %"]
    assert [text for text in shown if text in names][:4] == names
    assert [text for text in shown if text in ROLES] == ROLES[:3]
    assert {"A title", "decoder block", "mean sparsity (%)"} <= set(shown)


def test_only_allocations_that_tell_roles_apart_have_a_panel(tmp_path: Path) -> None:
    shown = texts(allocations(tmp_path / "a")[1])
    assert [shown.count(name) for name in ALLOCATIONS] == [1, 1, 2]
    png, svg = allocations(tmp_path / "b", {"uniform": UNIFORM, "rising": RISING})
    assert not set(ROLES) & set(texts(svg))
    assert shape_of(png)[1] < shape_of(tmp_path / "a.png")[1]


def test_a_block_is_drawn_at_its_mean_weighted_by_size(tmp_path: Path) -> None:
    values = [0.2, 0.4, 0.9, 0.6, 0.6, 0.6, 0.9, 0.1, 0.5, 0.8, 0.3, 0.7]
    (line, *_) = paths_of(allocations(tmp_path / "a", {"mixed": values})[1], "#0072b2")
    mean = np.average(np.array(values).reshape(4, 3), axis=1, weights=SIZES[:3])
    assert line.shape == (4, 2)
    drawn = (line[:, 1] - line[0, 1]) / (line[1, 1] - line[0, 1])
    np.testing.assert_allclose(drawn, (mean - mean[0]) / (mean[1] - mean[0]), atol=1e-5)
    np.testing.assert_allclose(np.diff(line[:, 0]), line[1, 0] - line[0, 0], atol=1e-4)


def test_a_dozen_allocations_look_different(tmp_path: Path) -> None:
    many = {f"name {place}": [0.3 + 0.04 * place] * 12 for place in range(12)}
    svg = allocations(tmp_path / "a", many)[1]
    styles = [node.get("style", "") for node in ElementTree.parse(svg).iter(f"{SVG}path")]
    looks = {style for style in styles if "fill: none" in style and "stroke-width: 1.6" in style}
    assert len(looks) == 12


def test_searches_are_drawn_with_plain_numbers(tmp_path: Path) -> None:
    png, svg = searches(tmp_path / "s")
    assert shape_of(png)[0] == 1800
    shown = texts(svg)
    assert [text for text in shown if text in SEARCHES] == list(SEARCHES)
    assert {"40", "60", "80"} <= set(shown)
    assert {"candidates judged", "best validation perplexity"} <= set(shown)


def test_a_search_is_a_step_line_on_a_logarithmic_axis(tmp_path: Path) -> None:
    (line, *_) = paths_of(searches(tmp_path / "s")[1], "#0072b2")
    x, y = line[:, 0] - line[0, 0], line[:, 1] - line[0, 1]
    np.testing.assert_allclose(x / x[-1], np.array([0, 3, 3, 9, 9]) / 9, atol=1e-5)
    logs = np.log(np.array([90, 90, 60, 60, 50]) / 90)
    np.testing.assert_allclose(y / y[-1], logs / logs[-1], atol=1e-5)


def test_a_group_has_the_median_of_its_searches(tmp_path: Path) -> None:
    svg = searches(tmp_path / "s", groups=GROUPS)[1]
    shown = texts(svg)
    named = [text for text in shown if text.startswith(("evolution", "random"))]
    assert named == ["evolution, median of 2", "random, median of 1"]
    first, second, median, _ = paths_of(svg, "#0072b2")  # the last is the legend's
    # Where both have a value: candidates 2 to 10, medians 85, 70, 65, 60 from 2, 4, 6, 10 on.
    assert median[0, 0] == second[0, 0]
    assert median[-1, 0] == first[-1, 0]
    logs = np.log(np.array([85, 85, 70, 70, 65, 65, 60]) / 85)
    drop = median[:, 1] - median[0, 1]
    np.testing.assert_allclose(drop / drop[-1], logs / logs[-1], atol=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(42.0, 44.0, {"42.5", "43.5"}), (40.0, 700.0, {"50", "200"}), (40.0, 3e6, {"1,000,000"})],
)
def test_ticks_are_round_at_every_range(
    low: float, high: float, ticks: set[str], tmp_path: Path
) -> None:
    svg = searches(tmp_path / "s", {"one": [(1, high), (9, low)]})[1]
    assert ticks <= set(texts(svg))


def test_two_writes_are_the_same_bytes_whatever_the_settings_of_matplotlib(tmp_path: Path) -> None:
    first = [*allocations(tmp_path / "a"), *searches(tmp_path / "s", groups=GROUPS)]
    before = [file.read_bytes() for file in first]
    with matplotlib.rc_context({"font.size": 20, "xtick.direction": "in", "svg.hashsalt": "other"}):
        allocations(tmp_path / "a")
        searches(tmp_path / "s", groups=GROUPS)
        assert matplotlib.rcParams["font.size"] == 20, "the caller's settings are left alone"
    assert [file.read_bytes() for file in first] == before


def test_lengths_that_disagree_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"allocation 'short': 11 values for 12 layers"):
        allocations(tmp_path / "a", {"uniform": UNIFORM, "short": UNIFORM[1:]})
    with pytest.raises(UsageError, match="blocks: 3 values"):
        allocation_figure(ALLOCATIONS, **{**LAYERS, "blocks": BLOCKS[:3]}, target=0.7, title="T")
    with pytest.raises(UsageError, match="sizes: 3 values"):
        allocation_figure(ALLOCATIONS, **{**LAYERS, "sizes": SIZES[:3]}, target=0.7, title="T")
    with pytest.raises(UsageError, match="at least one"):
        allocation_figure({}, **LAYERS, target=0.7, title="T")
    assert not list(tmp_path.iterdir())


def test_searches_that_cannot_be_drawn_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'back'.*decrease"):
        searches(tmp_path / "s", {"back": [(4, 50.0), (2, 40.0)]})
    with pytest.raises(UsageError, match="'third' has no group"):
        searches(tmp_path / "s", groups={"first": "a", "second": "a"})
    with pytest.raises(UsageError, match="no finite figure"):
        searches(tmp_path / "s", {"unfit": [(1, float("inf"))]})
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(GppruneError, match=r"file/a\.png"):
        allocations(tmp_path / "file" / "a")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(GppruneError, match=r"b\.png"):
        allocations(tmp_path / "b")
    with pytest.raises(GppruneError, match="names no file"):
        allocations(Path("."))
    with pytest.raises(GppruneError, match="cannot write"):
        allocations(tmp_path / "zero\0byte")
    assert {file.name for file in tmp_path.iterdir()} == {"file", "b.png"}, "no draft is left"


def test_a_new_picture_takes_the_old_ones_place_at_once(tmp_path: Path) -> None:
    svg = allocations(tmp_path / "a")[1]
    old = svg.read_bytes()
    os.link(svg, tmp_path / "open")  # what a program that has the old file open goes on reading
    allocations(tmp_path / "a", {"uniform": UNIFORM})
    assert svg.read_bytes() != old
    assert (tmp_path / "open").read_bytes() == old


def _full(path: Path, content: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_picture_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = allocations(tmp_path / "a")[1].read_bytes()
    monkeypatch.setattr("gpprune.discover.plots.style.whole_file", _full)
    with pytest.raises(GppruneError, match=r"a\.png.*No space left"):
        allocations(tmp_path / "a", {"uniform": UNIFORM})
    assert (tmp_path / "a.svg").read_bytes() == old


def test_matplotlib_loads_only_for_a_picture() -> None:
    code = "import sys, gpprune.discover.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
