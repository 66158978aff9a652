"""Measurements, each beside a floor or a peer taken in the same run: ``make bench``.

A benchmark is a module here with ``run() -> list[Row]`` (:mod:`tests.bench.table`) and a docstring whose
first line is its title; ``python -m tests.bench NAME...`` runs some of them. What a row says counts as a
ratio: absolute numbers are this machine's.
"""
