"""Exact rewrites that pay on some targets and cost on others: the planner tries each, and keeps what it timed to be faster.

A rule of the spine (`fusion.ORDER`) leaves fewer nodes and never loses; these trade multiplications for lanes, or memory for
additions.
"""

from __future__ import annotations

from optimizer.fusion.rewrites import blocks, strides
from optimizer.fusion.rule import Rule

REWRITES: tuple[Rule, ...] = (*strides.RULES, *blocks.RULES)
"""In the order in which they are tried."""
