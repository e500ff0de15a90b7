"""Puzzle tasks for recurrent subjects: each is drawn from a seed and solved exactly, and nothing is read from disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from mlinterp.errors import unknown
from mlinterp.subjects.tasks.base import Task, read_options
from mlinterp.subjects.tasks.maze import Maze, MazeOptions
from mlinterp.subjects.tasks.sorting import Sort, SortOptions
from mlinterp.subjects.tasks.sudoku import Sudoku, SudokuOptions

TASKS: Mapping[str, type[Task]] = {"sudoku4": Sudoku, "sudoku6": Sudoku, "sudoku9": Sudoku, "maze": Maze, "sort": Sort}

TaskChoice = Annotated[SudokuOptions | MazeOptions | SortOptions, Field(discriminator="name")]
"""The options of one task, told apart by `name`."""


def build_task(name: str, options: Mapping[str, Any]) -> Task:
    """Return the task of a name. Raises SpecError for an unknown name and for the first wrong option."""
    if name not in TASKS:
        raise unknown("task.name", name, TASKS, what="task")
    task = TASKS[name]
    return task(read_options(task.Options, {**options, "name": name}, prefix="task"))
