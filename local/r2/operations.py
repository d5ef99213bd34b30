"""Names the operations of R2's S3 API, as Cloudflare bills them (developers.cloudflare.com/r2/pricing)."""

from __future__ import annotations

from urllib.parse import parse_qs

from llmdo.local.wire import HttpCall

# By method: of an object, and of a bucket. The first parameter of the query that is there names another one.
_OF_OBJECT = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
_OF_BUCKET = {"GET": "ListObjects", "HEAD": "HeadBucket", "PUT": "CreateBucket", "DELETE": "DeleteBucket"}
_BY_PARAMETER = {
    ("POST", "delete"): "DeleteObjects",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("PUT", "partNumber"): "UploadPart",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
}


def operation_of(call: HttpCall) -> str:
    """The operation's name, for ListObjectsV2 that of both versions; a method of HTTP for what has no name here."""
    query = parse_qs(call.query, keep_blank_values=True)
    for (method, parameter), name in _BY_PARAMETER.items():
        if call.method == method and parameter in query:
            return name
    _, _, key = call.path[1:].partition("/")
    if call.method == "PUT" and key and "x-amz-copy-source" in call.headers:
        return "CopyObject"
    return (_OF_OBJECT if key else _OF_BUCKET).get(call.method, call.method)
