import json

import pytest

from penstock.http.complaints import complaint, error_inside


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "m", "type": "t"}}', "m"),
        ('{"error": "m"}', "m"),
        ('{"message": "m"}', "m"),
        ('{"error": true, "message": "m"}', "m"),
        ('{"detail": "m"}', "m"),
        ('[{"error": {"message": "m", "code": 400}}]', "m"),
        ('{"detail": [{"msg": "m"}]}', '{"detail": [{"msg": "m"}]}'),
        ('{"error": {"message": ""}}', '{"error": {"message": ""}}'),
        ("plain", "plain"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_complaints_are_found(body, said):
    assert complaint(body).message == said


@pytest.mark.parametrize(
    "error",
    [
        {"code": "insufficient_quota"},
        {"type": "insufficient_quota", "code": None},
        {"code": "billing_hard_limit_reached"},
        {"code": "account_deactivated"},
        {"code": "invalid_api_key"},
        {"type": "exceeded_current_quota_error"},
        {"code": "429", "message": "RateLimitError: OpenAIException - insufficient_quota"},
        {
            "code": "rate_limit_exceeded",
            "message": "Request too large for m (TPM): Limit 10000, Requested 200000.",
        },
    ],
)
def test_what_only_a_person_can_mend_is_final(error):
    assert complaint(json.dumps({"error": {"message": "no", **error}})).is_final


@pytest.mark.parametrize(
    "error", [{"code": "rate_limit_exceeded"}, {"type": "tokens"}, {"code": 429}, {}]
)
def test_a_limit_of_rates_is_not(error):
    assert not complaint(
        json.dumps({"error": {"message": "You exceeded your current quota", **error}})
    ).is_final


@pytest.mark.parametrize(
    ("error", "status", "retryable"),
    [
        ({"code": 502}, 502, True),
        ({"code": "429"}, 429, True),
        ({"code": 400.0}, 400, False),
        ({"status": 503, "code": "busy"}, 503, True),
        ({"code": 1113}, 500, True),
        ({"code": None, "type": "invalid_request_error"}, 400, False),
        ({"type": "rate_limit_error"}, 429, True),
        ({"type": "overloaded_error"}, 503, True),
        ({"code": "insufficient_quota"}, 401, False),
        ({"code": 429, "type": "insufficient_quota"}, 429, False),
        ({"error_type": "validation"}, 422, False),
        ({}, 500, True),
    ],
)
def test_an_error_inside_a_200_is_one_of_the_status_that_it_names(error, status, retryable):
    found = error_inside(json.dumps({"error": {"message": "down", **error}}).encode(), "there")
    assert found is not None
    assert (found.http_status, found.retryable) == (status, retryable)
    assert "down" in str(found)


@pytest.mark.parametrize(
    "body",
    [
        '{"error": "down"}',
        '{"object": "error", "message": "down"}',
        '{"type": "error", "error": {"message": "down"}}',
        '{"choices": [], "x_groq": {"id": "x", "error": "down"}}',
    ],
)
def test_errors_come_in_other_forms(body):
    assert "down" in str(error_inside(body.encode(), "there"))


def test_what_stands_beside_an_error_is_read():
    tgi = error_inside(b'{"error": "`top_p` must be > 0", "error_type": "validation"}', "there")
    assert tgi is not None
    assert (tgi.http_status, tgi.retryable) == (422, False)
    details: list[object] = [3, {"@type": "x"}, {"@type": "RetryInfo", "retryDelay": "34.5s"}]
    google = {"code": 429, "message": "slow down", "details": details}
    assert complaint(json.dumps([{"error": google}])).retry_after == 34.5
    details[2] = {"retryDelay": "soon"}
    assert complaint(json.dumps([{"error": google}])).retry_after is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b'{"error": null}',
        b'{"error": ""}',
        b'{"error": {}}',
        b'{"data": [{"error": 1}]}',
        b'["error"]',
    ],
)
def test_what_is_no_error_is_none(body):
    assert error_inside(body, "there") is None
