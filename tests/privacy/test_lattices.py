"""Lattices: nearest points against search, geometry against the published constants."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krossfuse.core.errors import ConfigError
from krossfuse.privacy.lattices import choose_lattice, find_lattice, lattice_of_code, lattices

ALL = list(lattices())
SMALL = ["Z1", "Z2", "Z3", "A2", "D3", "D4"]


def points_near(name: str) -> np.ndarray:
    """Return all points of a lattice within a box around the origin, found from its definition."""
    lattice = find_lattice(name)
    if name == "A2":
        ij = np.array(list(itertools.product(range(-6, 7), repeat=2)))
        return ij @ np.array([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    grid = np.array(list(itertools.product(range(-3, 4), repeat=lattice.dim)), float)
    if name.startswith("D"):
        grid = grid[grid.sum(1) % 2 == 0]
    return grid


@pytest.mark.parametrize("name", SMALL)
def test_nearest_is_the_nearest_of_all(name):
    lattice = find_lattice(name)
    y = np.random.default_rng(0).uniform(-1.4, 1.4, size=(lattice.dim, 400))
    every = points_near(name)
    distance = np.square(every[:, :, None] - y).sum(1).min(0)
    nearest, _ = lattice.nearest(y)
    assert np.allclose(np.square(nearest - y).sum(0), distance, atol=1e-12)
    assert np.abs(every[:, :, None] - nearest[None]).sum(1).min(0).max() < 1e-12  # it is a point of the lattice


def test_nearest_of_e8_is_within_its_covering_radius_and_no_neighbour_is_nearer():
    lattice = find_lattice("E8")
    y = np.random.default_rng(1).uniform(-5, 5, size=(8, 1000))
    point, _ = lattice.nearest(y)
    distance = np.square(point - y).sum(0)
    assert distance.max() <= 1.0  # the covering radius of E8 is 1
    pairs = [
        np.eye(8)[i] * a + np.eye(8)[j] * b
        for i, j in itertools.combinations(range(8), 2)
        for a in (1, -1)
        for b in (1, -1)
    ]
    halves = [np.array(s) / 2 for s in itertools.product((1, -1), repeat=8) if np.prod(s) == 1]
    roots = np.array(pairs + halves)
    sums = (roots[:, None] + roots).reshape(-1, 8)
    second = np.unique(sums[np.isclose(np.square(sums).sum(1), 4)], axis=0)
    assert (len(roots), len(second)) == (240, 2160)  # the vectors that bound the Voronoi cell of E8
    for vector in np.concatenate([roots, second]):
        assert (np.square(point + vector[:, None] - y).sum(0) >= distance - 1e-12).all()
    doubled = 2 * point
    assert np.allclose(doubled, np.rint(doubled))
    assert (np.ptp(np.rint(doubled) % 2, axis=0) == 0).all()
    assert np.allclose(point.sum(0) % 2, 0)


@pytest.mark.parametrize(
    ("name", "tries"),
    [
        ("Z1", 1.0),
        ("Z2", 4 / math.pi),
        ("Z3", 6 / math.pi),
        ("A2", 2 * math.sqrt(3) / math.pi),
        ("D3", 1.3505),
        ("D4", 16 / math.pi**2),
        ("E8", 384 / math.pi**4),
        ("Z8", 63.07),
    ],
)
def test_density(name, tries):
    assert 1 / find_lattice(name).density == pytest.approx(tries, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in ALL if name != "Z1"])
def test_packing_radius_and_cell_volume(name):
    lattice = find_lattice(name)
    rng = np.random.default_rng(2)
    y = rng.uniform(-3, 3, size=(lattice.dim, 20_000))
    points, _ = lattice.nearest(y)
    points = np.unique(points.round(9), axis=1)
    origin, _ = lattice.nearest(np.zeros((lattice.dim, 1)))
    assert not origin.any()
    lengths = np.sqrt(np.square(points).sum(0))
    assert lengths[lengths > 1e-9].min() >= 2 * lattice.packing_radius - 1e-9
    # Within the packing radius of the origin everything is nearest to it, and that ball has the density's share.
    inside = rng.normal(size=(lattice.dim, 2000))
    inside *= lattice.packing_radius * 0.999 * rng.random(2000) ** (1 / lattice.dim) / np.sqrt(np.square(inside).sum(0))
    assert not lattice.nearest(inside)[0].any()
    box = rng.random((lattice.dim, 100_000)) * np.array(lattice.period)[:, None]
    share = (np.square(lattice.nearest(box)[0] - box).sum(0) <= lattice.packing_radius**2).mean()
    assert share == pytest.approx(lattice.density, abs=4.5 * math.sqrt(lattice.density / 100_000))


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
def test_a_point_comes_back_from_its_integers(name, data):
    lattice = find_lattice(name)
    y = np.random.default_rng(data.draw(st.integers(0, 2**32))).normal(size=(lattice.dim, 17))
    y *= 10 ** data.draw(st.floats(-3, 6))
    points, cosets = lattice.nearest(y)
    index = lattice.index(points, cosets)
    assert index.dtype == np.int32
    assert np.allclose(lattice.points(index), points, rtol=1e-12)
    assert np.allclose(lattice.nearest(points)[0], points, rtol=1e-12)
    for coordinate in range(lattice.dim):
        width, offset = lattice.grid_line(index, coordinate)
        assert np.allclose(width * index[coordinate - lattice.dim] + offset, points[coordinate], rtol=1e-12)


def test_translation_by_the_period_changes_nothing():
    for name in ALL:
        lattice = find_lattice(name)
        y = np.random.default_rng(5).normal(size=(lattice.dim, 500))
        for coordinate, side in enumerate(lattice.period):
            moved = y.copy()
            moved[coordinate] += side
            difference = lattice.nearest(moved)[0] - lattice.nearest(y)[0]
            expected = np.zeros_like(y)
            expected[coordinate] = side
            assert np.allclose(difference, expected)


def test_names_codes_and_choice():
    assert len({lattice.code for lattice in lattices().values()}) == len(lattices())
    assert all(lattice_of_code(lattice.code) is lattice for lattice in lattices().values())
    assert lattice_of_code(255) is None
    with pytest.raises(ConfigError, match="did you mean 'E8'"):
        find_lattice("E88")
    assert choose_lattice(0.8, 1.0).name == "Z1"
    assert choose_lattice(1.0, 1.0).name == "E8"
    with pytest.raises(ConfigError, match="2\\^30 quantiser steps"):
        find_lattice("Z1").index(np.array([[2.0**31]]), np.zeros(1, np.uint8))
