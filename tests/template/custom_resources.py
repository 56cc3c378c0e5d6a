"""Schemas of the custom resources of deploy/kubernetes/, in the fields that it uses and no others.

Read from the definitions of KEDA 2.20, the Prometheus operator 0.93, the Gateway API 1.6 and its
Inference Extension 1.6. A field that is not here is one to look up there first.
"""

from typing import Any

Schema = dict[str, Any]

NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 253}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
COUNT: Schema = {"type": "integer", "minimum": 0}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}
GO_DURATION: Schema = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
PROMETHEUS_DURATION: Schema = {"type": "string", "pattern": r"^(\d+(y|w|d|h|m|s|ms))+$"}


def fields(required: str, **properties: Schema) -> Schema:
    """An object that has these fields alone, the first ones always."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(items: Schema, least: int = 1, most: int = 64) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def resource(spec: Schema) -> Schema:
    metadata = fields(
        "name",
        name=NAME,
        namespace=NAME,
        labels=LABELS,
        annotations={"type": "object", "additionalProperties": {"type": "string"}},
    )
    text: Schema = {"type": "string"}
    return fields(
        "apiVersion kind metadata spec", apiVersion=text, kind=text, metadata=metadata, spec=spec
    )


SELECTOR = fields("matchLabels", matchLabels=LABELS)

POLICIES = listed(
    fields(
        "type value periodSeconds",
        type={"enum": ["Pods", "Percent"]},
        value={"type": "integer", "minimum": 1},
        periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
    )
)
SCALING = fields(
    "policies",
    policies=POLICIES,
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
)
SCALED_OBJECT = fields(
    "scaleTargetRef triggers",
    scaleTargetRef=fields("name", name=NAME),
    minReplicaCount=COUNT,
    maxReplicaCount={"type": "integer", "minimum": 1},
    pollingInterval={"type": "integer", "minimum": 1},
    fallback=fields(
        "failureThreshold replicas",
        failureThreshold=COUNT,
        replicas=COUNT,
        behavior={
            "enum": [
                "static",
                "currentReplicas",
                "currentReplicasIfHigher",
                "currentReplicasIfLower",
                "scalingModifiers",
            ]
        },
    ),
    advanced=fields(
        "",
        horizontalPodAutoscalerConfig=fields(
            "", behavior=fields("", scaleUp=SCALING, scaleDown=SCALING)
        ),
    ),
    triggers=listed(
        fields(
            "type metadata",
            type={"const": "prometheus"},
            # https://keda.sh/docs/latest/scalers/prometheus/
            metadata=fields(
                "serverAddress query threshold",
                serverAddress={"type": "string", "pattern": "^https?://"},
                query={"type": "string"},
                threshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
            ),
        )
    ),
)

SERVICE_MONITOR = fields(
    "selector endpoints",
    selector=SELECTOR,
    endpoints=listed(
        fields("port", port=NAME, path={"type": "string"}, interval=PROMETHEUS_DURATION)
    ),
)
RULE = fields(
    "alert expr",
    alert=NAME,
    expr={"type": "string", "minLength": 1},
    labels={"type": "object", "additionalProperties": {"type": "string"}},
    annotations={"type": "object", "additionalProperties": {"type": "string"}},
    **{"for": PROMETHEUS_DURATION},
)
PROMETHEUS_RULE = fields("", groups=listed(fields("name rules", name=NAME, rules=listed(RULE))))

INFERENCE_POOL = fields(
    "selector targetPorts endpointPickerRef",
    selector=fields("matchLabels", matchLabels=LABELS | {"minProperties": 1}),
    targetPorts=listed(fields("number", number=PORT), most=8),
    # Before 1.6 a pool had to name one; a service has to have a port.
    endpointPickerRef=fields(
        "name port",
        name=NAME,
        port=fields("number", number=PORT),
        failureMode={"enum": ["FailOpen", "FailClose"]},
    ),
)

BACKEND: Schema = {
    "oneOf": [
        fields("name port", name=NAME, port=PORT),
        fields(
            "group kind name",
            group={"const": "inference.networking.k8s.io"},
            kind={"const": "InferencePool"},
            name=NAME,
        ),
    ]
}
PATH = fields(
    "type value",
    type={"enum": ["Exact", "PathPrefix"]},
    value={"type": "string", "pattern": "^/", "maxLength": 1024},
)
HTTP_ROUTE = fields(
    "rules",
    parentRefs=listed(fields("name", name=NAME, namespace=NAME), most=32),
    rules=listed(
        fields(
            "backendRefs",
            matches=listed(fields("path", path=PATH)),
            backendRefs=listed(BACKEND, most=16),
            timeouts=fields("", request=GO_DURATION, backendRequest=GO_DURATION),
        ),
        most=16,
    ),
)

SCHEMAS: dict[tuple[str, str], Schema] = {
    ("keda.sh/v1alpha1", "ScaledObject"): resource(SCALED_OBJECT),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): resource(SERVICE_MONITOR),
    ("monitoring.coreos.com/v1", "PrometheusRule"): resource(PROMETHEUS_RULE),
    ("inference.networking.k8s.io/v1", "InferencePool"): resource(INFERENCE_POOL),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): resource(HTTP_ROUTE),
}
