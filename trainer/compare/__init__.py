"""`trainer compare`: several runs beside each other, made of their files alone."""

from trainer.compare.writing import Comparison, write_comparison

__all__ = ["Comparison", "write_comparison"]
