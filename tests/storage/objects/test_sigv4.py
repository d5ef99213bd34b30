import string
from types import SimpleNamespace
from urllib.parse import quote

from botocore import auth
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.objects import sigv4
from llmdo.storage.objects.sigv4 import Signer, encode_query

HEADERS = st.dictionaries(
    st.sampled_from(["if-match", "if-none-match", "range", "content-type", "x-amz-meta-a", "x-amz-meta-b"]),
    st.text(string.ascii_letters + string.digits + ' "=*/-', min_size=1).map(str.strip),
)
METHODS = st.sampled_from(["GET", "PUT", "HEAD", "POST", "DELETE"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def botocores(method, url, headers, body):
    request = AWSRequest(method=method, url=url, headers=headers, data=body)
    request.context["client_config"] = SimpleNamespace(s3={"payload_signing_enabled": True})
    S3SigV4Auth(Credentials("key-id", "secret"), "s3", "auto").add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@given(METHODS, TEXT, st.dictionaries(TEXT.filter(bool), TEXT, max_size=3), HEADERS, st.binary(max_size=50))
def test_a_signature_is_botocores(method, key, query, headers, body):
    path = "/bucket/" + quote(key, safe="/~")
    encoded = encode_query(query)
    ours = Signer("key-id", "secret", "r2.test:9000").headers(method, path, encoded, headers, body)
    url = f"http://r2.test:9000{path}" + (f"?{encoded}" if encoded else "")
    given_at = auth.get_current_datetime
    try:
        auth.get_current_datetime = lambda: auth.datetime.datetime.strptime(ours["x-amz-date"], "%Y%m%dT%H%M%SZ")
        assert ours == botocores(method, url, headers, body)
    finally:
        auth.get_current_datetime = given_at


def test_a_day_later_another_key_signs(monkeypatch):
    signer, now = Signer("key-id", "secret", "r2.test"), 1_800_000_000.0
    dates = []
    for at in (now, now + 86_400, now):
        fake = SimpleNamespace(**{**vars(sigv4.time), "time": lambda at=at: at})
        with monkeypatch.context() as patch:
            patch.setattr(sigv4, "time", fake)
            dates.append(signer.headers("GET", "/b/k", "", {}, b""))
            assert dates[-1] == Signer("key-id", "secret", "r2.test").headers("GET", "/b/k", "", {}, b"")
    assert dates[0] == dates[2] != dates[1]


def test_a_signer_does_not_show_its_secret():
    assert "secret" not in repr(Signer("key-id", "secret", "r2.test"))
