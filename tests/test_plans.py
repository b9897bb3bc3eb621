"""The catalog: every problem told by path, nothing taken that was not meant."""

from __future__ import annotations

from datetime import timedelta

import pytest

from polarcredits.errors import ConfigError, NotFound
from polarcredits.plans import parse_catalog

FREE = '[plans.free]\ncredits = 1000\ninterval = "lifetime"\n'


def test_with_no_file_there_are_free_and_pro() -> None:
    """§3.1."""
    catalog = parse_catalog(None, pro_product_id="p")
    assert [(plan.name, plan.credits, plan.interval, plan.product_ids) for plan in catalog.plans] == [
        ("free", 1000, "lifetime", ()),
        ("pro", 5000, "month", ("p",)),
    ]
    assert (catalog.default.name, catalog.cost("anything")) == ("free", 1)
    assert (catalog.policy.clawback, catalog.policy.upgrade) == ("owed", "prorated")


def test_a_whole_file() -> None:
    """Every key of the contract."""
    catalog = parse_catalog(
        FREE
        + """
        [plans.pro]
        credits = 5000
        interval = "month"
        product_ids = ["a"]
        rollover = "all"
        trial_credits = 10
        per_seat = true
        renewal_grace = "0s"
        [packs.small]
        credits = 7
        product_ids = ["b"]
        expires_after = "365d"
        [operations]
        render = 3
        [policy]
        clawback = "debt"
        upgrade = "paid"
        """,
        pro_product_id="c",
    )
    pro = catalog.plan("pro")
    assert (pro.product_ids, pro.rollover, pro.trial_credits, pro.per_seat) == (("a", "c"), None, 10, True)
    assert pro.renewal_grace == timedelta(0)
    assert catalog.plan_for_product("c") is pro
    pack = catalog.pack_for_product("b")
    assert pack is not None
    assert (pack.credits, pack.expires_after) == (7, timedelta(days=365))
    assert (catalog.cost("render"), catalog.policy.clawback, catalog.policy.upgrade) == (3, "debt", "paid")
    with pytest.raises(NotFound, match="free, pro"):
        catalog.plan("gold")


def test_a_file_without_the_default_plan_gets_the_built_in_one() -> None:
    """And a product for a plan that is not there is let be."""
    catalog = parse_catalog('[plans.gold]\ncredits = 5\ninterval = "day"\n', pro_product_id="p")
    assert [plan.name for plan in catalog.plans] == ["free", "gold"]
    assert catalog.plan_for_product("p") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[plans.pro]\ncredits = 1\ninterval = "monthly"', 'plans.pro.interval: "monthly" is not one of'),
        (
            '[plans.pro]\ncredit = 1\ninterval = "month"',
            "plans.pro.credit: unknown key; did you mean credits",
        ),
        ('[plans.pro]\ninterval = "month"', "plans.pro.credits: missing"),
        ('[plans.pro]\ncredits = true\ninterval = "month"', "plans.pro.credits: True is not a whole number"),
        ('[plans.pro]\ncredits = -1\ninterval = "month"', "plans.pro.credits: -1"),
        ('[plans.pro]\ncredits = 1.5\ninterval = "month"', "plans.pro.credits: 1.5"),
        ('[plans.pro]\ncredits = 1\ninterval = "month"\nrollover = "some"', "plans.pro.rollover"),
        ('[plans.pro]\ncredits = 1\ninterval = "month"\nper_seat = 1', "plans.pro.per_seat"),
        ('[plans.pro]\ncredits = 1\ninterval = "month"\nproduct_ids = "x"', "plans.pro.product_ids"),
        ('[plans.pro]\ncredits = 1\ninterval = "month"\nrenewal_grace = "soon"', "plans.pro.renewal_grace"),
        ('[plans.free]\ncredits = 1\ninterval = "month"', "plans.free.interval: the default plan must be"),
        ('default_plan = "gold"', "default_plan: there is no plan 'gold'"),
        ("[pakcs.x]\ncredits = 1", "pakcs: unknown key; did you mean packs"),
        ("[packs.x]\ncredits = 1\nexpires_after = 3", "packs.x.expires_after"),
        ('[operations]\nrender = "3"', "operations.render"),
        ('[policy]\nclawback = "own"', 'policy.clawback: "own" is not one of owed, floor, debt'),
        ("plans = 3", "plans: 3 is not a table"),
        (
            '[packs.a]\ncredits = 1\nproduct_ids = ["x"]\n[packs.b]\ncredits = 1\nproduct_ids = ["x"]',
            "packs.b.product_ids: 'x' belongs to packs.a too",
        ),
        ("x = [", "not valid TOML"),
    ],
)
def test_every_problem_is_told_by_path(text: str, problem: str) -> None:
    """The message says what, which and what is known."""
    with pytest.raises(ConfigError) as refused:
        parse_catalog(text, pro_product_id=None)
    assert problem in refused.value.message


def test_all_problems_at_once() -> None:
    """One run tells everything."""
    with pytest.raises(ConfigError) as refused:
        parse_catalog('[plans.a]\ncredits = -1\ninterval = "x"\n[policy]\nz = 1', pro_product_id=None)
    problems = refused.value.fields["problems"]
    assert isinstance(problems, list)
    assert len(problems) == 3


FREE_PLAN = '[plans.free]\ncredits = 1\ninterval = "lifetime"\n'


def test_the_setting_and_the_file_disagree() -> None:
    """What the setting says is a product of `pro` is another plan's in the file: told, as within the file."""
    other = '[plans.max]\ncredits = 9\ninterval = "month"\nproduct_ids = ["p"]\n'
    pro = '[plans.pro]\ncredits = 5\ninterval = "month"\n'
    with pytest.raises(ConfigError, match=r"belongs to plans\.pro too \(POLAR_PRO_PRODUCT_ID names it"):
        parse_catalog(FREE_PLAN + pro + other, pro_product_id="p")
    with pytest.raises(ConfigError, match=r"belongs to plans\.pro too$"):
        parse_catalog(FREE_PLAN + pro + 'product_ids = ["p"]\n' + other, pro_product_id="p")
    alone = parse_catalog(FREE_PLAN + other, pro_product_id="p").plan_for_product("p")
    assert alone is not None
    assert alone.name == "max"
