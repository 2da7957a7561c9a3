"""Fixtures of the report's tests."""

from conftest_report import make_study, study

__all__ = ["make_study", "study"]
