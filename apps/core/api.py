"""The API's common furniture, gathered for the rooms' `api.py`."""

from apps.core.clock import rfc3339
from apps.core.etags import check_if_match, tagged
from apps.core.pagination import keyset_page, status_filter, text_filter, truth_filter
from apps.core.parsers import MergePatchParser, StrictJSONParser
from apps.core.problems import exception_handler, problem_response
from apps.core.serializers import (
    Choice,
    Id,
    JSONObject,
    StrictSerializer,
    StringMap,
    Text,
    Truth,
    WholeNumber,
    validated,
)

__all__ = [
    "Choice",
    "Id",
    "JSONObject",
    "MergePatchParser",
    "StrictJSONParser",
    "StrictSerializer",
    "StringMap",
    "Text",
    "Truth",
    "WholeNumber",
    "check_if_match",
    "exception_handler",
    "keyset_page",
    "problem_response",
    "rfc3339",
    "status_filter",
    "tagged",
    "text_filter",
    "truth_filter",
    "validated",
]
