"""Fixtures of the report's tests."""

from conftest_report import make_study, study, toy, two_tasks

__all__ = ["make_study", "study", "toy", "two_tasks"]
