"""Points of a search space: check them against the schema, and make configs of them.

A point is a value for each dotted key that is varied. It goes over the config as `--set`
does, so that a search can say nothing that a file could not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import chain
from typing import Any

from pydantic import ValidationError

from trainer.config.checks import CHECKS
from trainer.config.layers import key_path_of, merge, to_plain
from trainer.config.messages import explain
from trainer.config.schema import Config
from trainer.config.search_schema import SearchConfig
from trainer.config.yaml_nodes import Node, Place, Problem, dotted
from trainer.errors import ConfigError


def assignments(search: SearchConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point with the keys that follow others, kinds first."""
    point = {}
    for key, value in values.items():
        point[key] = value
        point |= dict.fromkeys(search.space[key].also, value)
    return point


def space_problems(root: Node, config: Config) -> Iterator[Problem]:
    """Try every value of a choice and both ends of every range, one parameter at a time.

    Args:
        root: The merged file, with the places of its keys.
        config: What it says.

    Yields:
        What is wrong, at the line of the parameter.
    """
    search = config.search
    if search is None:
        return
    assert isinstance(root.value, dict)
    written = root.value["search"].value
    assert isinstance(written, dict)
    place = written.get("objective", root.value["search"]).place
    if search.objective.startswith("val_") and config.data.validation_split == 0:
        text = "needs validation images, and data.validation_split is 0"
        yield Problem(place, f"search.objective: {search.objective} {text}")
    place = written.get("prune", root.value["search"]).place
    gradients = config.gradients
    if "gradients" in search.prune and not (gradients.record and gradients.live):
        text = "gradients needs gradients.record and gradients.live to be true. Write prune: median"
        yield Problem(place, f"search.prune: {text}")

    bare = without_search(root)
    parameters = written["space"].value
    assert isinstance(parameters, dict)
    for key, parameter in search.space.items():
        place = parameters[key].place
        wrong = list(_wrong_conditions(search, key))
        if not wrong:
            conditions = _conditions(search, key)
            for value in parameter.extremes:
                point = assignments(search, {**conditions, key: value})
                wrong += _wrong_value(bare, point, place, value) or _wrong_epochs(
                    bare, point, place, config
                )
        for text in dict.fromkeys(wrong):
            yield Problem(place, f"search.space.{key}: {text}")


def _wrong_conditions(search: SearchConfig, key: str) -> Iterator[str]:
    """What `when` of a parameter says that cannot be."""
    seen = {key}
    pending = list(search.space[key].when)
    while pending:
        parent = pending.pop()
        if parent in seen:
            yield f"when: {parent} depends on itself"
            return
        seen.add(parent)
        if parent in search.space:
            pending += search.space[parent].when
    for parent, allowed in search.space[key].when.items():
        if parent not in search.space:
            known = ", ".join(search.space)
            yield f"when: {parent} is no parameter of this search. Parameters: {known}"
            continue
        possible = search.space[parent]
        if possible.kind not in ("choice", "boolean"):
            yield f"when: {parent} must be a choice or a boolean. Received: {possible.kind}"
            continue
        for value in allowed:
            if value not in possible.extremes:
                yield (
                    f"when: {parent} is never {value!r}; it is one of "
                    f"{', '.join(map(repr, possible.extremes))}"
                )


def _conditions(search: SearchConfig, key: str) -> dict[str, Any]:
    """Values of the other parameters with which this one is varied."""
    point: dict[str, Any] = {}
    for parent, allowed in search.space[key].when.items():
        point |= {**_conditions(search, parent), parent: allowed[0]}
    return point


def _wrong_value(root: Node, point: Mapping[str, Any], place: Place, value: Any) -> list[str]:
    try:
        config, problems = _try_point(root, point, place)
    except ConfigError as error:
        return [str(error).removeprefix(f"{place}: ")]
    if config is not None:
        problems += [
            Problem(place, f"{dotted(path)}: {message}")
            for path, message in chain.from_iterable(check(config) for check in CHECKS)
        ]
    unknown = [problem.message for problem in problems if "unknown key" in problem.message]
    if unknown:
        return [f"{unknown[0]}. If only one kind has this key, vary it there: `when: {{...: ...}}`"]
    return [f"{value!r} does not fit: {problem.message}" for problem in problems]


def _wrong_epochs(
    root: Node, point: Mapping[str, Any], place: Place, config: Config
) -> Iterator[str]:
    """What is wrong with a valid point that changes the epochs."""
    changed, _ = _try_point(root, point, place)
    is_hyperband = config.search is not None and config.search.algorithm == "hyperband"
    if is_hyperband and changed is not None and changed.fit.epochs != config.fit.epochs:
        yield (
            "hyperband decides itself for how many epochs a trial trains, up to fit.epochs. "
            "Leave fit.epochs out of the space, or choose another algorithm"
        )


def _try_point(
    root: Node, point: Mapping[str, Any], place: Place
) -> tuple[Config | None, list[Problem]]:
    # One layer, or `optimizer.kind` would drop what is set beside it.
    layers = [_layer(key, value, place) for key, value in point.items()]
    node = merge(root, reduce(merge, layers)) if layers else root
    try:
        return Config.model_validate(to_plain(node)), []
    except ValidationError as error:
        return None, explain(error, node)


def _layer(key: str, value: Any, place: Place) -> Node:
    node = _node(value, place)
    for part in reversed(key_path_of(key, place)):
        node = Node({part: node}, place)
    return node


def _node(value: Any, place: Place) -> Node:
    if isinstance(value, dict):
        return Node({key: _node(item, place) for key, item in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([_node(item, place) for item in value], place)
    return Node(value, place)


def without_search(root: Node) -> Node:
    """Return a config file's values without its `search` section."""
    assert isinstance(root.value, dict)
    return Node({key: node for key, node in root.value.items() if key != "search"}, root.place)


def at_point(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a config without its search, at one point of its space.

    Args:
        config: With a `search` section.
        values: For some of its parameters.

    Raises:
        ConfigError: If the point is no valid config: each value fits, but not together.
    """
    assert config.search is not None
    place = Place("this point of the search")
    root = _node(config.model_dump(mode="json", exclude={"search"}), place)
    point = assignments(config.search, values)
    changed, problems = _try_point(root, point, place)
    if changed is not None:
        problems += [
            Problem(place, f"{dotted(path)}: {message}")
            for path, message in chain.from_iterable(check(changed) for check in CHECKS)
        ]
    if changed is None or problems:
        raise ConfigError("\n".join(problem.message for problem in problems))
    return changed
