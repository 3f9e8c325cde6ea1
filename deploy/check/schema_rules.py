"""Files against the schemas of Kubernetes' API, and those that a cluster's own kinds have."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from minitron_trt.deploy.check.claims import PodTemplate, pod_templates
from minitron_trt.deploy.check.files import Document, objects
from minitron_trt.deploy.dynamo_graph import GRAPH
from minitron_trt.errors import BadInputError, MissingExtraError
from minitron_trt.records import read_text
from minitron_trt.triton_repo.check.report import Finding, Severity
from minitron_trt.yaml_bounds import check_bounds

KUBERNETES: Final = "1.37"
"""The version whose schemas the core kinds are held against."""


@dataclass(frozen=True, slots=True)
class Definitions:
    """The schemas of kinds that a cluster has beside its own, by group, version and kind."""

    schemas: Mapping[tuple[str, str], Any]

    @classmethod
    def read(cls, paths: tuple[Path, ...]) -> Definitions:
        """Read CustomResourceDefinitions, as `kubectl get crds -o yaml` writes them."""
        schemas: dict[tuple[str, str], Any] = {}
        for path in paths:
            try:
                # A cluster's definitions are megabytes: in C where PyYAML was built with libyaml.
                loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
                text = read_text(path)
                check_bounds(text, loader=loader)
                documents = list(yaml.load_all(text, Loader=loader))
            # A date like 2026-13-01 is a ValueError of PyYAML's, and no YAMLError.
            except (yaml.YAMLError, RecursionError, ValueError) as error:
                detail = " ".join(str(error).split())
                raise BadInputError(f"{path} is not YAML: {detail}") from error
            found = [
                item
                for document in documents
                if isinstance(document, dict)
                for item in _items(document)
            ]
            before = len(schemas)
            for definition in found:
                schemas |= dict(_versions(definition))
            if len(schemas) == before:
                raise BadInputError(
                    f"{path} has no CustomResourceDefinition; expected what kubectl get crds -o "
                    "yaml writes"
                )
        return cls(schemas)


def _items(document: dict[str, Any]) -> list[Any]:
    """Return the objects of a list; of anything else itself."""
    items = document.get("items")
    return items if isinstance(items, list) else [document]


def _versions(definition: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    try:
        spec = definition["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            if isinstance(schema, dict):
                yield (f"{spec['group']}/{version['name']}", spec["names"]["kind"]), schema
    except (KeyError, TypeError):
        return


def check_schemas(documents: list[Document], definitions: Definitions) -> Iterator[Finding]:
    """Check every object; a kind without a schema here is a note, its Pods are checked."""
    try:
        import kubernetes_validate
    except ModuleNotFoundError as error:
        raise MissingExtraError("kubernetes-validate", "deploy", "deploy check") from error
    noted = set()
    for document in objects(documents):
        if not all(isinstance(document.value.get(name), str) for name in ("apiVersion", "kind")):
            yield document.finding(
                ("kind",), "an object without apiVersion or kind", expected="a text for each"
            )
            continue
        found = _core(kubernetes_validate, document, document.value)
        if found is not None:
            yield from found
            continue
        schema = definitions.schemas.get((str(document.value.get("apiVersion")), document.kind))
        if schema is not None:
            yield from _own(document, schema)
        elif document.kind not in noted:
            noted.add(document.kind)
            yield document.finding(
                ("kind",),
                f"no schema of {document.value.get('apiVersion')} is at hand",
                remedy="give the cluster's, of kubectl get crds -o yaml, by --crds",
                severity=Severity.NOTE,
            )
    for pod in pod_templates(documents):
        if pod.document.kind in ("LeaderWorkerSet", "InferenceService", GRAPH):
            known = {key: value for key, value in pod.spec.items() if key not in _PREDICTOR}
            template = {"metadata": {"labels": dict(pod.labels)}, "spec": known}
            value = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
            yield from _core(kubernetes_validate, pod.document, value, pod) or ()


# What KServe's predictor has beside a Pod's spec: its ComponentExtensionSpec (v1beta1).
_PREDICTOR: Final = frozenset(
    {"minReplicas", "maxReplicas", "labels", "annotations", "deploymentStrategy"}
    | {"scaleMetric", "scaleMetricType", "scaleTarget", "autoScaling", "containerConcurrency"}
    | {"timeout", "canaryTrafficPercent", "logger", "batcher"}
)


def _core(
    library: Any, document: Document, value: dict[str, Any], pod: PodTemplate | None = None
) -> list[Finding] | None:
    """Return what is wrong with an object; None where Kubernetes itself has no such kind."""
    try:
        library.validate(value, KUBERNETES, strict=True)
    except library.SchemaNotFoundError:
        return None
    except library.ValidationError as error:
        path = tuple(error.path)
        if pod is not None:
            # A template of ours, `template.spec`, stands for the object around the Pod.
            in_spec = path[:2] == ("template", "spec")
            path = (*pod.spec_path, *path[2:]) if in_spec else (*pod.path, *path[1:])
        return [document.finding(path, str(error.message), expected=f"Kubernetes {KUBERNETES}")]
    return []


def _own(document: Document, schema: Any) -> Iterator[Finding]:
    import jsonschema

    # OpenAPI 3.0 has the words of draft 4: its exclusiveMinimum, for one, is no number.
    # A CRD has no $ref; what one leads to would be fetched.
    rules = {"pattern": _pattern, "$ref": lambda *_: ()}
    own = jsonschema.validators.extend(jsonschema.Draft4Validator, rules)
    try:
        own.check_schema(schema, format_checker=None)
    except jsonschema.SchemaError as error:
        raise BadInputError(
            f"--crds: the schema of {document.kind} is none at {error.json_path}: {error.message}; "
            "expected what kubectl get crds -o yaml writes"
        ) from error
    validator = own(_strict({**schema, _IS_OBJECT: True}))
    for wrong in validator.iter_errors(_without_nulls(document.value)):
        yield document.finding(tuple(wrong.absolute_path), wrong.message)


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    """Yield what is wrong by a pattern; one that only Go can read is not asked."""
    import jsonschema

    try:
        with warnings.catch_warnings():
            # [[:alpha:]] is something else to Python, which warns of it.
            warnings.simplefilter("error", FutureWarning)
            re.compile(pattern)
    except (re.error, FutureWarning):
        return
    yield from jsonschema.Draft4Validator.VALIDATORS["pattern"](validator, pattern, value, schema)


def _without_nulls(value: Any) -> Any:
    """Return a value as a cluster reads it: a field that is null is absent."""
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(below) for key, below in value.items() if below is not None}


_IS_OBJECT: Final = "x-kubernetes-embedded-resource"
# Conditions beside a schema name some of its fields; only the schema itself lists them all.
_ALSO_TRUE: Final = frozenset({"allOf", "anyOf", "oneOf", "not"})


def _strict(schema: Any) -> Any:
    """Return a CRD's schema as a cluster applies it: unknown fields are none, null is absent."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    # Fields are names, not words of a schema, though one be called `properties` or `required`.
    fields = schema.get("properties")
    strict = {
        key: value if key in _ALSO_TRUE else _strict(value)
        for key, value in schema.items()
        if key != "properties"
    }
    if not isinstance(fields, dict):
        return strict
    strict["properties"] = {name: _strict(each) for name, each in fields.items()}
    # Where null is a value, it is taken out with all others, and must not be missed.
    nullable = {name for name, each in fields.items() if _is_nullable(each)}
    strict["required"] = [name for name in schema.get("required") or () if name not in nullable]
    if not schema.get("x-kubernetes-preserve-unknown-fields"):
        # An object has these, be it within another; a CRD need not repeat them.
        for name in ("apiVersion", "kind", "metadata") if schema.get(_IS_OBJECT) else ():
            strict["properties"].setdefault(name, {})
        strict.setdefault("additionalProperties", False)
    return strict


def _is_nullable(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("nullable") is True
