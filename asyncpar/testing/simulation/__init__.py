"""Simulated lives: the whole engine but its adapters, on a virtual clock, with seeded faults.

A life is drawn from its seed (`plan`), lived (`world`, `member`, `handlers`, `faults`, `link`), and judged by
the same checkers as a real run (`life`). A life that fails is made smaller (`shrink`) and told (`trace`).
"""
