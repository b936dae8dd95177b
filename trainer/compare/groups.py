"""Which runs are the same thing but for their seed, and what tells the others apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from trainer.config import Config
from trainer.report.reading import RunFiles

MOST_KEYS_OF_A_LABEL = 2


@dataclass(frozen=True)
class Group:
    """Runs whose configs differ in nothing but seed and name.

    Attributes:
        label: Short and unique.
        runs: At least one; more than one only with a config.
        labels: Of the runs, unique over all groups.
        values: The config by dotted path, None if it cannot be read.
    """

    label: str
    runs: tuple[RunFiles, ...]
    labels: tuple[str, ...]
    values: Mapping[str, Any] | None

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Seed of each run, None without a config."""
        return tuple(None if run.config is None else run.config.seed for run in self.runs)

    @property
    def num_seeds(self) -> int:
        """Different seeds among the runs."""
        return len(set(self.seeds))


def grouped(runs: Sequence[RunFiles]) -> list[Group]:
    """Return the runs by what they are, in the order in which they came."""
    found: dict[Any, list[RunFiles]] = {}
    for index, run in enumerate(runs):
        # Of a run without a config nobody knows whether it is like another one.
        key = index if run.config is None else frozenset(config_values(run.config).items())
        found.setdefault(key, []).append(run)
    members = list(found.values())
    values = [None if m[0].config is None else config_values(m[0].config) for m in members]
    labels = _unique(_group_labels(members, values))
    return [
        Group(label, tuple(of_group), _run_labels(label, of_group), of_config)
        for label, of_group, of_config in zip(labels, members, values, strict=True)
    ]


def config_values(config: Config) -> dict[str, Any]:
    """Return what makes a training, by dotted path; items of lists by their number.

    Without the name, the seed, and what only a search reads.
    """
    plain = config.model_dump(mode="json", exclude={"name", "seed", "search"})
    if config.data.source == "cifar10":
        # The same images, wherever they lie.
        plain["data"].pop("path")
    return dict(_leaves(plain))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if items is None:
        yield path, value
        return
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Return the keys in which the configs of groups differ.

    Returns:
        By dotted path one value a group with a config, in their order; `ABSENT` where a config
        has no such key.
    """
    configs = [group.values for group in groups if group.values is not None]
    return _differences(configs)


def _differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    paths = dict.fromkeys(path for values in configs for path in values)
    rows = {path: [values.get(path, ABSENT) for values in configs] for path in paths}
    # 1 and 1.0 are one value, True and 1 are two.
    return {
        path: row
        for path, row in rows.items()
        if any(each != row[0] or isinstance(each, bool) != isinstance(row[0], bool) for each in row)
    }


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
"""Stands for a key that a config does not have."""


def value_text(value: Any) -> str:
    """Return a value of a config for people."""
    if value is ABSENT:
        return "\u2013"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _group_labels(
    members: Sequence[Sequence[RunFiles]], values: Sequence[Mapping[str, Any] | None]
) -> list[str]:
    names = [{run.name for run in of_group} for of_group in members]
    if all(len(each) == 1 for each in names) and len(set.union(*names)) == len(members):
        return [next(iter(each)) for each in names]
    configs = [each for each in values if each is not None]
    if len(configs) == len(values) > 1:
        differing = _differences(configs)
        # What all of them have says most, and a kind more than a number.
        keys = [key for key, row in differing.items() if ABSENT not in row]
        kinds = tuple(key for key in keys if key.endswith("kind"))
        others = [key for key in keys if key not in kinds]
        more = [chosen for count in (1, 2) for chosen in combinations(others, count)]
        for chosen in (kinds, *((*kinds, *each) for each in more), *more):
            if 0 < len(chosen) <= MOST_KEYS_OF_A_LABEL:
                labels = [_label(chosen, each) for each in configs]
                if len(set(labels)) == len(labels):
                    return labels
    return [of_group[0].path.resolve().name for of_group in members]


def _label(keys: Sequence[str], values: Mapping[str, Any]) -> str:
    first, *others = (_words(key, values[key]) for key in keys)
    return f"{first} ({', '.join(others)})" if others else first


def _words(key: str, value: Any) -> str:
    *parents, last = key.split(".")
    if isinstance(value, str) and value != "none":
        return value
    name = parents[-1] if last == "kind" and parents else last
    text = f"{value:.4g}" if isinstance(value, float) else value_text(value)
    return f"{name.replace('_', ' ')} {text}"


def _run_labels(label: str, runs: Sequence[RunFiles]) -> tuple[str, ...]:
    if len(runs) == 1:
        return (label,)
    seeds = [f"{label}, seed {run.config.seed}" for run in runs if run.config is not None]
    return tuple(_unique(seeds))


def _unique(labels: Sequence[str]) -> list[str]:
    counts, seen = Counter(labels), Counter[str]()
    unique = []
    for label in labels:
        seen[label] += 1
        unique.append(label if counts[label] == 1 else f"{label} ({seen[label]})")
    return unique
