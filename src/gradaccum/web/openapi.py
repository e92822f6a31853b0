"""The API described in OpenAPI 3.1, by hand: the parameters come from the one table of inputs."""

from __future__ import annotations

from gradaccum import __version__
from gradaccum.core.fields import CHOICE, COUNT, FIELDS
from gradaccum.core.query import DEFAULTS, MAX_QUERY
from gradaccum.core.sweep import MAX_ROWS
from gradaccum.memory.setup import MEANINGS
from gradaccum.units import MAX_DIGITS, MAX_TEXT
from gradaccum.web.fit_options import NAMES, OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.fields import Field

    Schema = dict[str, object]

_NUMBER = r"\s*[+-]?[0-9_,]*(\.[0-9_]*)?([eE][+-]?[0-9]+)?\s*[A-Za-z]*\s*"
_FACTOR = rf"{_NUMBER}((\^|\*\*)\s*[0-9]+\s*)?"
NUMBER = rf"^({_FACTOR}([x*\u00d7]{_FACTOR})*%?\s*(tok|tokens)?\s*)$"
"""What a number may look like: `4`, `4M`, `1_024`, `1,024`, `2Ki`, `1e6`, `2^19`, `16x8`, `30%`."""

INTEGER: Schema = {"type": "integer"}
COUNT_OR_NULL: Schema = {"type": ["integer", "null"]}
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}


def openapi() -> Schema:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gradaccum",
            "version": __version__,
            "summary": "From a target batch to a verified training step",
            "description": (
                "Three of target, micro-batch, GPUs and accumulation steps give the fourth. What a query leaves out "
                f"takes the page's defaults ({', '.join(f'{name} {value}' for name, value in DEFAULTS.items())}), as "
                "far as they leave something to find; a name with nothing behind it is blank on purpose. Integers are "
                f"exact and may pass 2^53; those of a query have at most {MAX_DIGITS} digits. "
                f"A query has at most {MAX_QUERY} characters."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/api/plan": _get(
                "plan",
                "One update: accumulation steps, the batch that you really get, and what to know about it",
                [_parameter(spec) for spec in FIELDS],
                "Plan",
            ),
            "/api/table": _get(
                "table",
                f"Many plans, best first: an input may be a list `8,16,32` or a range `1..16`; at most {MAX_ROWS} rows",
                [_list_parameter(spec) for spec in FIELDS],
                "Table",
            ),
            "/api/fit": _get(
                "fit",
                "The largest micro-batch that a GPU holds, by the closed form: the JSON of `gradaccum fit`",
                [*[_fit_parameter(name) for name in NAMES], *[_parameter(spec) for spec in FIELDS]],
                "Fit",
            ),
            "/trace": {"post": _trace()},
            "/healthz": {
                "get": {
                    "operationId": "health",
                    "summary": "Whether the server answers",
                    "responses": {"200": {"description": "ok", "content": {"text/plain": {"schema": TEXT}}}},
                }
            },
        },
        "components": {"schemas": {"Plan": _plan(), "Table": _table(), "Fit": _fit(), "Errors": _errors()}},
    }


def _get(operation: str, summary: str, parameters: list[Schema], schema: str) -> Schema:
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            "parameters": [*parameters, _preset()],
            "responses": {
                "200": {"description": "Done", "content": _json(schema)},
                "422": {"description": "Wrong input: one entry for each wrong field", "content": _json("Errors")},
            },
        }
    }


def _json(schema: str) -> Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _parameter(spec: Field) -> Schema:
    if spec.kind == CHOICE:
        schema: Schema = {"type": "string", "enum": ["", *spec.choices]}
        if spec.default is not None:
            schema["default"] = spec.default
    else:
        schema = {"type": "string", "maxLength": MAX_TEXT, "pattern": NUMBER}
        if spec.kind == COUNT:
            schema = {"anyOf": [{"type": "integer", "minimum": spec.minimum}, schema]}
    aliases = f" Also understood: {', '.join(spec.aliases)}." if spec.aliases else ""
    return {
        "name": spec.name,
        "in": "query",
        "required": False,
        "description": f"{spec.label}: {spec.hint}.{aliases}",
        "schema": schema,
    }


def _fit_parameter(name: str) -> Schema:
    meaning = {
        "model": "A model of the catalog, such as llama-3.1-8b",
        "gpu": "A GPU of the catalog, such as rtx-3060-12gb, or its memory, such as 24GiB",
    }.get(name) or MEANINGS.get(name, name.replace("_", " ").capitalize())
    words = next((words for option, _, words in OPTIONS if option == name), ())
    schema: Schema = {"type": "string", "enum": ["", *words]} if words else {"type": "string", "maxLength": MAX_QUERY}
    return {
        "name": name,
        "in": "query",
        "required": name in ("model", "gpu"),
        "description": meaning + ".",
        "schema": schema,
    }


def _trace() -> Schema:
    text: Schema = {"text/plain": {"schema": TEXT}}
    return {
        "operationId": "trace",
        "summary": "What fits, by a trace of the model's real step, which takes seconds to minutes",
        "description": (
            "For the server's own page: a browser's `Sec-Fetch-Site` or `Origin` must say so. The body is the query of "
            "`/api/fit`. One trace runs at a time, with a limit on time and memory, and ends with the connection."
        ),
        "requestBody": {"content": {"application/x-www-form-urlencoded": {"schema": TEXT}}},
        "responses": {
            "200": {
                "description": "JSON, a line a second: `seconds` and `limit` while it runs, at last `html` or `error`",
                "content": {"application/x-ndjson": {"schema": TEXT}},
            },
            "403": {"description": "Asked by something else than the page", "content": text},
            "409": {"description": "A trace is running already", "content": text},
            "413": {"description": "The query is too long", "content": text},
            "422": {"description": "Wrong input: one entry for each wrong field", "content": _json("Errors")},
        },
    }


def _list_parameter(spec: Field) -> Schema:
    described = _parameter(spec)
    return {**described, "schema": {"type": "string", "maxLength": MAX_QUERY}}


def _preset() -> Schema:
    return {
        "name": "preset",
        "in": "query",
        "required": False,
        "description": "A published run to start from, such as bloom-176b; the other inputs override it.",
        "schema": {"type": "string"},
    }


def _object(properties: Schema, required: bool = True) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(properties)} if required else {})}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _choice() -> Schema:
    counts: Schema = dict.fromkeys(("micro_batch", "num_gpus", "accum_steps", "effective_batch"), INTEGER)
    return _object({**counts, "drift": COUNT_OR_NULL, "drift_tokens": COUNT_OR_NULL})


def _table() -> Schema:
    return _object({"schema_version": {"const": 1}, "total": {"type": "integer"}, "rows": _list(_choice())})


def _fit() -> Schema:
    """As `Fit.to_dict()` has it."""
    point: Schema = dict.fromkeys(
        ("micro_batch", "peak_bytes", "reserved_bytes", "process_bytes", "process_low_bytes", "process_high_bytes"),
        INTEGER,
    )
    memory: Schema = dict.fromkeys(
        (
            "peak_bytes low_bytes high_bytes reserved_bytes process_bytes process_low_bytes process_high_bytes "
            "capacity_bytes"
        ).split(),
        INTEGER,
    )
    line: Schema = {"name": TEXT, "bytes": INTEGER, "source": TEXT}
    memory.update({"peak_at": TEXT, "verdict": {"enum": ["fits", "marginal", "does not fit"]}})
    memory.update({"ledger": _list(_object({**line, "formula": TEXT})), "outside": _list(_object(line))})
    counts = ("max_micro_batch", "max_micro_batch_surely", "max_micro_batch_at_best", "most_looked_at")
    return _object(
        {
            "schema_version": {"const": 1},
            "model": TEXT,
            "gpu": TEXT,
            **dict.fromkeys(counts, INTEGER),
            "micro_batch": COUNT_OR_NULL,
            "plan": {"anyOf": [{"$ref": "#/components/schemas/Plan"}, {"type": "null"}]},
            "memory": _object(memory),
            "curve": _list(_object(point)),
            "changes": _list(
                _object({"change": TEXT, "bytes": INTEGER, "set": {"type": "object"}, "fits": {"type": "boolean"}})
            ),
            "engine": TEXT,
            "evidence": _object({"regime": TEXT, "cases": INTEGER, "worst_percent": NUMBER_OR_NULL, "margin": INTEGER}),
            "findings": _findings(),
        }
    )


def _findings() -> Schema:
    return _list(_object({"code": TEXT, "severity": TEXT, "message": TEXT, "action": TEXT, "source": TEXT}))


def _errors() -> Schema:
    return _object({"errors": _list(_object({"field": TEXT, "message": TEXT, "nearest": _list(TEXT)}))})


def _plan() -> Schema:
    """The contract. A version may add a property; none changes its meaning."""
    always = (
        "micro_batch num_gpus tensor_parallel pipeline_parallel context_parallel virtual_pipeline data_parallel "
        "device_batch accum_steps effective_batch last_micro_batch"
    )
    maybe = (
        "max_micro_batch target_batch target_tokens drift drift_tokens sequence_length tokens_per_step dataset_size "
        "token_budget updates updates_per_epoch last_group_size warmup_updates warmup_tokens leftover_tokens tokens "
        "loss_tokens_per_step params base_batch"
    )
    properties: Schema = {"schema_version": {"const": 1}}
    properties.update(dict.fromkeys(always.split(), INTEGER))
    properties.update(dict.fromkeys(maybe.split(), COUNT_OR_NULL))
    real = ("epochs", "warmup_fraction", "supervised_fraction", "tokens_per_param", "learning_rate")
    properties.update(dict.fromkeys(real, NUMBER_OR_NULL))
    properties.update(
        {
            "rounding": TEXT,
            "drift_percent": TEXT,
            "last_group": TEXT,
            "solved_for": TEXT_OR_NULL,
            "vary": TEXT_OR_NULL,
            "bubble_percent": TEXT_OR_NULL,
            "gradient_dtype": TEXT_OR_NULL,
            "scaled_rates": _list(
                _object(
                    {
                        "rule": TEXT,
                        "learning_rate": {"type": "number"},
                        "holds_for": TEXT,
                        "advice": TEXT,
                        "source": TEXT,
                    }
                )
            ),
            "findings": _findings(),
            "neighbours": _list(
                _object(
                    {
                        "rounding": TEXT,
                        "accum_steps": INTEGER,
                        "effective_batch": INTEGER,
                        "drift": COUNT_OR_NULL,
                        "drift_tokens": COUNT_OR_NULL,
                    }
                )
            ),
            "better_choices": _list(_choice()),
        }
    )
    return _object(properties)
