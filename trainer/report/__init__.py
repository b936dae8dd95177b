"""`report.html`: one run to look at, made of its files alone, whatever became of it."""

from trainer.report.writing import Report, write_report

__all__ = ["Report", "write_report"]
