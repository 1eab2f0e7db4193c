"""Who a caller is: the key is compared once, with every key."""

import hmac

import pytest
from starlette.datastructures import Headers

from penstock.errors import ForbiddenError, NoKeyError
from penstock.serve.api.auth import check_admin, check_user, rank_of
from penstock.serve.config.settings import HttpSettings

BOTH = HttpSettings(api_keys=frozenset({"user-1", "user-2"}), admin_keys=frozenset({"admin"}))
ADMINS = HttpSettings(admin_keys=frozenset({"admin"}))


@pytest.mark.parametrize(
    ("settings", "key", "rank", "may_ask", "control"),
    [
        (HttpSettings(), "", "admin", True, None),
        (BOTH, "admin", "admin", True, None),
        (BOTH, "user-2", "user", True, ForbiddenError),
        (BOTH, "wrong", "stranger", False, NoKeyError),
        (BOTH, "", "stranger", False, NoKeyError),
        (ADMINS, "admin", "admin", True, None),
        (ADMINS, "wrong", "stranger", True, NoKeyError),
    ],
)
def test_what_a_caller_may_do(settings, key, rank, may_ask, control):
    headers = Headers({"authorization": f"Bearer {key}"} if key else {})
    found = rank_of(headers, settings)
    assert found == rank
    if may_ask:
        check_user(found, headers, settings)
    else:
        with pytest.raises(NoKeyError):
            check_user(found, headers, settings)
    if control is None:
        check_admin(found, headers)
    else:
        with pytest.raises(control):
            check_admin(found, headers)


def test_every_key_is_compared_once(monkeypatch):
    compared = []

    def compare(one, other):
        compared.append(other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    rank_of(Headers({"x-api-key": "admin"}), BOTH)
    assert sorted(compared) == [b"admin", b"user-1", b"user-2"]
