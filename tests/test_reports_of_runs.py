from __future__ import annotations

import shutil
from pathlib import Path

import evidence
import pytest
import recorded
from workbench import PROJECT  # noqa: F401 - only to say where projects of tests come from
