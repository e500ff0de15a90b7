"""Puzzle tasks against brute force: nothing here trusts the solver that drew the puzzles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path

from mlinterp.errors import SpecError
from mlinterp.subjects.tasks import TASKS, build_task
from mlinterp.subjects.tasks.base import SPLITS
from mlinterp.subjects.tasks.maze import GOAL, OPEN, START, WALL, WAY, canonical, distances, symmetries
from mlinterp.subjects.tasks.sudoku import relabelled
from mlinterp.subjects.tasks.sudoku_solver import boards_of, geometry, propagate, random_grids, solve

SMALL = {"n_train": 60, "n_validation": 25, "n_test": 25}


def units(size: int) -> list[list[int]]:
    rows, cols = {4: (2, 2), 6: (2, 3), 9: (3, 3)}[size]
    lines = [[r * size + c for c in range(size)] for r in range(size)] + [[r * size + c for r in range(size)] for c in range(size)]
    boxes = [[(r + i) * size + c + j for i in range(rows) for j in range(cols)] for r in range(0, size, rows) for c in range(0, size, cols)]
    return lines + boxes


def is_solution(grid: np.ndarray, size: int) -> bool:
    return all(sorted(grid[unit]) == list(range(1, size + 1)) for unit in units(size))


def peers(size: int) -> list[set[int]]:
    return [set().union(*(unit for unit in units(size) if cell in unit)) - {cell} for cell in range(size * size)]


def brute_count(puzzle: list[int], size: int, near: list[set[int]], limit: int = 10**9) -> int:
    """Count solutions cell by cell, without any inference."""
    if 0 not in puzzle:
        return 1
    cell = puzzle.index(0)
    taken = {puzzle[other] for other in near[cell]}
    found = 0
    for digit in range(1, size + 1):
        if digit not in taken:
            found += brute_count([*puzzle[:cell], digit, *puzzle[cell + 1 :]], size, near, limit - found)
            if found >= limit:
                break
    return found


def all_4x4_grids() -> set[tuple[int, ...]]:
    near = peers(4)
    grids: list[tuple[int, ...]] = [()]
    for cell in range(16):
        earlier = [other for other in near[cell] if other < cell]
        grids = [(*grid, digit) for grid in grids for digit in (1, 2, 3, 4) if all(grid[other] != digit for other in earlier)]
    return set(grids)


def test_the_solver_finds_exactly_the_288_grids_of_4_x_4():
    shape = geometry(4)
    found = solve(boards_of(np.zeros((1, 16), dtype=np.int64), shape), shape, limit=1000)
    assert found.counts.tolist() == [288]
    assert {tuple(grid) for grid in found.grids.tolist()} == all_4x4_grids()


def test_the_solver_counts_the_39168_grids_of_6_x_6_with_a_given_first_row():
    shape = geometry(6)
    empty = np.zeros((1, 36), dtype=np.int64)
    empty[0, :6] = range(1, 7)
    counts = solve(boards_of(empty, shape), shape, limit=10**6).counts
    assert counts.tolist() == [28_200_960 // 720]  # the published number of 6 x 6 grids by the orders of the first row


@pytest.mark.parametrize(("size", "clues"), [(4, 4), (4, 7), (6, 14), (6, 20)])
def test_the_solver_counts_like_brute_force_also_where_clues_contradict(size, clues):
    rng = np.random.default_rng(size + clues)
    shape = geometry(size)
    grids = random_grids(30, shape, rng)
    puzzles = np.where(rng.random(grids.shape).argsort(axis=1) < clues, grids, 0)
    wrong = np.arange(0, 30, 3)
    at = rng.integers(size * size, size=wrong.size)
    puzzles[wrong, at] = rng.integers(1, size + 1, size=wrong.size)
    near = peers(size)
    expected = []
    for puzzle in puzzles.tolist():
        clash = any(digit and digit in {puzzle[other] for other in near[cell]} for cell, digit in enumerate(puzzle))
        expected.append(0 if clash else brute_count(puzzle, size, near, 5000))
    assert 0 in expected
    counts = solve(boards_of(puzzles, shape), shape, limit=5000).counts
    assert np.minimum(counts, 5000).tolist() == expected


def test_a_limit_stops_the_search_and_solutions_belong_to_their_board():
    shape = geometry(9)
    one = random_grids(1, shape, np.random.default_rng(0))
    puzzles = np.concatenate([np.zeros_like(one), one])
    found = solve(boards_of(puzzles, shape), shape, limit=2)
    assert found.counts[0] >= 2
    assert found.counts[1] == 1
    assert (found.grids[found.owners == 1] == one).all()
    assert all(is_solution(grid, 9) for grid in found.grids)


def test_propagation_calls_a_board_dead_where_a_digit_has_no_place_or_two():
    shape = geometry(4)
    twice = np.zeros((1, 16), dtype=np.int64)
    twice[0, [0, 3]] = 1
    no_place = np.zeros((1, 16), dtype=np.int64)
    no_place[0, [0, 1, 2, 7]] = [1, 2, 3, 4]
    fine = np.zeros((1, 16), dtype=np.int64)
    _, dead = propagate(boards_of(np.concatenate([twice, no_place, fine]), shape), shape)
    assert dead.tolist() == [True, True, False]


@pytest.mark.parametrize("size", [4, 6, 9])
def test_random_grids_are_valid_and_differ(size):
    grids = random_grids(40, geometry(size), np.random.default_rng(0))
    assert all(is_solution(grid, size) for grid in grids)
    assert len({grid.tobytes() for grid in grids}) > 30


def test_random_grids_of_4_x_4_reach_every_grid_in_like_numbers():
    grids = random_grids(28_800, geometry(4), np.random.default_rng(0))
    _, counts = np.unique(grids, axis=0, return_counts=True)
    assert len(counts) == 288
    assert counts.min() > 50
    assert counts.max() < 200


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sudoku4", {"minimal": True}),
        ("sudoku4", {"max_blanks": 8}),
        ("sudoku6", {"minimal": True}),
        ("sudoku6", {"min_blanks": 10, "max_blanks": 14, "split_by": "class"}),
    ],
)
def test_every_puzzle_has_one_solution_the_target(name, options):
    task = build_task(name, {**SMALL, **options})
    size, near = task.options.size, peers(task.options.size)
    inputs, targets = task.examples("test")
    for puzzle, answer in zip(inputs, targets, strict=True):
        assert is_solution(answer, size)
        assert (answer[puzzle != 0] == puzzle[puzzle != 0]).all()
        assert brute_count(puzzle.tolist(), size, near, 2) == 1
    blanks = (inputs == 0).sum(axis=1)
    if not options.get("minimal"):
        assert blanks.min() >= options.get("min_blanks", 1)
        assert blanks.max() <= options["max_blanks"]


def test_no_clue_of_a_minimal_puzzle_can_be_left_out():
    task = build_task("sudoku4", {**SMALL, "minimal": True})
    near = peers(4)
    for puzzle in task.examples("train")[0].tolist():
        for cell in np.nonzero(puzzle)[0]:
            assert brute_count([*puzzle[:cell], 0, *puzzle[cell + 1 :]], 4, near, 2) == 2


def test_minimal_9_x_9_puzzles_have_one_solution_and_need_each_clue():
    task = build_task("sudoku9", {"n_train": 8, "minimal": True})
    shape = task.geometry
    inputs, targets = task.examples("train")
    found = solve(boards_of(inputs, shape), shape, limit=2)
    assert found.counts.tolist() == [1] * 8
    assert (found.grids[found.owners.argsort()] == targets).all()
    fewer = [np.where(np.arange(81) == cell, 0, puzzle) for puzzle in inputs for cell in np.nonzero(puzzle)[0]]
    assert (solve(boards_of(np.stack(fewer), shape), shape, limit=2).counts >= 2).all()


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("sudoku4", {"split_by": "solution"}, lambda inputs, targets: targets),
        ("sudoku4", {"split_by": "puzzle"}, lambda inputs, targets: inputs),
        ("sudoku6", {"split_by": "solution"}, lambda inputs, targets: targets),
        ("sudoku6", {"split_by": "class"}, lambda inputs, targets: relabelled(targets)),
        ("sudoku9", {"split_by": "class"}, lambda inputs, targets: relabelled(targets)),
        ("maze", {"size": 5, "min_path": 3}, lambda inputs, targets: canonical(inputs.reshape(-1, 5, 5) == WALL)),
        ("sort", {"length": 5, "numbers": 6}, lambda inputs, targets: targets),
    ],
)
def test_no_two_splits_share_a_key_not_even_under_different_seeds(name, options, key):
    keys = {}
    for seed, split in enumerate(SPLITS):
        task = build_task(name, {"n_train": 400, "n_validation": 80, "n_test": 80, "seed": seed, **options})
        inputs, targets = task.examples(split)
        assert len({row.tobytes() for row in inputs}) == len(inputs) == {"train": 400}.get(split, 80)
        keys[split] = {np.ascontiguousarray(row).tobytes() for row in key(inputs, targets)}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]


def test_only_a_split_by_puzzle_says_that_it_shares_solutions():
    shared = build_task("sudoku4", {"n_train": 2000, "split_by": "puzzle"})
    assert "share solution grids" in (shared.shared or "")
    solutions = [{row.tobytes() for row in shared.examples(split)[1]} for split in ("train", "test")]
    assert solutions[0] & solutions[1]
    assert build_task("sudoku4", SMALL).shared is None


@pytest.mark.parametrize("name", sorted(TASKS))
def test_examples_are_a_function_of_options_and_split_alone(name):
    first, again = build_task(name, SMALL), build_task(name, SMALL)
    again.examples("validation")
    for split in ("train", "test"):
        for one, other in zip(first.examples(split), again.examples(split), strict=True):
            assert np.array_equal(one, other)
            assert one.dtype == np.int64
            assert one.shape[1] == first.length
            assert 0 <= one.min() <= one.max() < first.vocab
    fewer = build_task(name, {**SMALL, "n_train": 20})
    assert np.array_equal(fewer.examples("train")[0], first.examples("train")[0][:20])
    assert not np.array_equal(first.examples("train")[0], build_task(name, {**SMALL, "seed": 1}).examples("train")[0])


def test_renamed_digits_stay_solved_puzzles_of_training_classes():
    task = build_task("sudoku6", {**SMALL, "split_by": "class"})
    task.check_augmentation()
    inputs, targets = task.examples("train")
    new_inputs, new_targets = task.augment(inputs, targets, np.random.default_rng(0))
    assert all(is_solution(grid, 6) for grid in new_targets)
    assert np.array_equal(new_inputs == 0, inputs == 0)
    assert np.array_equal(new_inputs[inputs != 0], new_targets[inputs != 0])
    assert np.array_equal(relabelled(new_targets), relabelled(targets))
    assert not np.array_equal(new_targets, targets)


def test_augmentation_that_would_leak_is_refused():
    with pytest.raises(SpecError, match=r"held-out ones.*allowed with split_by 'class'"):
        build_task("sudoku6", SMALL).check_augmentation()
    with pytest.raises(SpecError, match="'puzzle'"):
        build_task("sudoku4", SMALL).check_augmentation()
    with pytest.raises(SpecError, match="sort has no augmentation"):
        build_task("sort", SMALL).check_augmentation()
    with pytest.raises(SpecError, match="sort has no augmentation"):
        build_task("sort", SMALL).augment(*build_task("sort", SMALL).examples("test"), np.random.default_rng(0))
    build_task("sudoku4", {**SMALL, "split_by": "puzzle"}).check_augmentation()


def adjacency(maze: np.ndarray, size: int) -> np.ndarray:
    links = np.zeros((size * size, size * size))
    for cell, other in itertools.product(range(size * size), repeat=2):
        (r, c), (s, d) = divmod(cell, size), divmod(other, size)
        if abs(r - s) + abs(c - d) == 1 and maze[cell] != WALL and maze[other] != WALL:
            links[cell, other] = 1
    return links


def check_maze(maze: np.ndarray, answer: np.ndarray, size: int, least: int) -> None:
    links = adjacency(maze, size)
    start, goal = np.nonzero(maze == START)[0].item(), np.nonzero(maze == GOAL)[0].item()
    steps = shortest_path(links, unweighted=True, indices=start)
    length = int(steps[goal])
    assert length >= least
    walks = np.linalg.matrix_power(links, length)
    assert walks[start, goal] == 1  # one walk of that length: the shortest way is the only one
    way = np.nonzero(answer == WAY)[0]
    assert sorted(steps[way]) == list(range(1, length))
    assert (links[np.ix_([start, *way, goal], [start, *way, goal])].sum() / 2) == length
    assert np.array_equal(np.where(answer == WAY, OPEN, answer), maze)


@pytest.mark.parametrize(("size", "least"), [(5, 5), (7, 9)])
def test_a_maze_marks_its_only_shortest_way(size, least):
    inputs, targets = build_task("maze", {**SMALL, "size": size, "min_path": least}).examples("test")
    for maze, answer in zip(inputs, targets, strict=True):
        check_maze(maze, answer, size, least)


def test_maze_distances_are_those_of_scipy_for_every_cell():
    rng = np.random.default_rng(1)
    walls = rng.random((20, 6, 6)) < 0.4
    walls[:, 2, 3] = False
    found = distances(walls, np.full(20, 2 * 6 + 3))
    for maze, steps in zip(walls, found, strict=True):
        expected = shortest_path(adjacency(np.where(maze, WALL, OPEN).reshape(-1), 6), unweighted=True, indices=15).reshape(6, 6)
        assert np.array_equal(np.where(steps < 1000, steps, np.inf), expected)


def test_turned_and_mirrored_mazes_keep_their_answer_and_their_key():
    task = build_task("maze", {**SMALL, "size": 5})
    inputs, targets = task.examples("train")
    task.check_augmentation()
    new_inputs, new_targets = task.augment(inputs, targets, np.random.default_rng(0))
    for maze, answer in zip(new_inputs, new_targets, strict=True):
        check_maze(maze, answer, 5, 5)
    layouts = inputs.reshape(-1, 5, 5) == WALL
    assert np.array_equal(canonical(new_inputs.reshape(-1, 5, 5) == WALL), canonical(layouts))
    forms = {maze.tobytes() for turned in symmetries(inputs[:1].reshape(1, 5, 5)) for maze in turned}
    assert len(forms) == 8
    assert {row.tobytes() for row in new_inputs} != {row.tobytes() for row in inputs}


def test_sorting_targets_are_the_inputs_in_order():
    inputs, targets = build_task("sort", {**SMALL, "length": 7, "numbers": 9}).examples("test")
    assert [sorted(row) for row in inputs.tolist()] == targets.tolist()


def test_tokens_and_grids_read_as_people_write_them():
    four = build_task("sudoku4", SMALL)
    assert [four.token_text(token) for token in range(5)] == [".", "1", "2", "3", "4"]
    assert four.render(np.array([1, 2, 0, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1])) == "1 2  . 4\n3 4  1 2\n\n2 1  4 3\n4 3  2 1"
    maze = build_task("maze", {**SMALL, "size": 4, "min_path": 3})
    assert [maze.token_text(token) for token in range(5)] == ["#", "_", "S", "G", "o"]
    assert maze.render(np.array([2, 4, 4, 3] + [0, 1] * 6)) == "SooG\n# # \n# # \n# # "
    assert build_task("sort", SMALL).render(np.array([3, 12])) == "3 12"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sudoku5", {}, r"unknown task 'sudoku5'.*did you mean 'sudoku"),
        ("sudoku4", {"max_blank": 3}, r"task: unknown option 'max_blank'; did you mean 'max_blanks'"),
        ("sudoku4", {"n_train": 0}, r"task.n_train: .*greater than or equal to 1, not 0"),
        ("sudoku4", {"minimal": True, "max_blanks": 3}, r"leave out min_blanks and max_blanks"),
        ("sudoku4", {"min_blanks": 5, "max_blanks": 3}, r"max_blanks 3 is below min_blanks 5"),
        ("sudoku4", {"max_blanks": 17}, r"more than the 16 cells"),
        ("sudoku4", {"split_by": "class"}, r"12 classes only"),
        ("maze", {"size": 4, "min_path": 9}, r"min_path 9 is too long"),
        ("sort", {"numbers": "9"}, r"task.numbers: .*valid integer, not '9'"),
    ],
)
def test_wrong_options_are_refused_on_one_line(name, options, message):
    with pytest.raises(SpecError, match=message) as caught:
        build_task(name, options)
    assert "\n" not in str(caught.value)


def test_asking_for_more_puzzles_than_there_are_says_how_many_there_are():
    task = build_task("sudoku4", {"n_train": 5000, "max_blanks": 1})
    with pytest.raises(SpecError, match=r"task.n_train: only 3\d\d\d different train examples of sudoku4"):
        task.examples("train")
    with pytest.raises(SpecError, match="unknown split 'training'; allowed: train, validation, test; did you mean 'train'"):
        task.examples("training")
