"""Feedback on assignments: `check` says what was expected, what came, and gives a hint."""

from icrl_lib.classroom.homework import Checks, check

__all__ = ["Checks", "check"]
