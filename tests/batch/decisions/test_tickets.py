"""Decisions of the demo model about its 600 tickets: as good as what it generates, and reliable."""

import json

import pytest

import penstock
from penstock.batch import acalibrate
from penstock.demo import tickets_path

pytestmark = pytest.mark.slow

TEAMS = ("account", "billing", "feature", "refund", "shipping", "technical")
QUESTION = {
    "name": "team",
    "options": [{"label": f'{{"category":"{team}', "value": team} for team in TEAMS],
}


async def test_as_accurate_as_generation_and_calibrated():
    fits = await acalibrate(
        str(tickets_path()), "category", prompt="{ticket}", decide=[QUESTION], model="demo"
    )
    fit = fits.questions["team"]
    assert fit.before.rows == 600
    assert fit.after.error <= 0.03
    generated = await penstock.arun(
        str(tickets_path()),
        prompt="{ticket}",
        model="demo",
        max_tokens=100,
        result_prefix="g_",
        progress=False,
    )
    right = sum(category(row) == row["category"] for row in generated.rows())
    assert fit.before.accuracy >= right / 600


def category(row):
    try:
        return json.loads(row["g_response"])["category"]
    except (ValueError, KeyError, TypeError):
        return None
