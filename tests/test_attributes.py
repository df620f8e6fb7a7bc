"Metrics of attributes against NumPy and SciPy in double precision; the published rows."
import numpy as np, pytest, torch
from scipy.spatial.distance import cosine
from mirrorcfe.attributes import (FIELD, FIELD_COLUMNS, attribute_changes, attribute_metrics, correlation_difference,
                                  correlations, fva, mnac, s3)
from mirrorcfe.core import MirrorError

@pytest.fixture
def case():
    "Sources, counterfactuals of which one is missing, an embedding, a judge of five attributes, labels."
    g = torch.Generator().manual_seed(3)
    x, x_cf = torch.rand(2, 12, 1, 4, 4, generator=g, dtype=torch.float64)*2 - 1
    x_cf[7] = torch.nan
    E, J = (torch.randn(16, n, generator=g, dtype=torch.float64) for n in (6, 5))
    labels = (torch.rand(40, 5, generator=g) > .4).float()
    return x, x_cf, lambda v: v.flatten(1) @ E, lambda v: v.flatten(1) @ J, labels

def test_against_numpy(case):
    x, x_cf, embed, judge, labels = case
    there = [i for i in range(12) if i != 7]
    a, b = (embed(v).numpy()[there] for v in (x, x_cf))
    cosines = np.array([1 - cosine(u, v) for u, v in zip(a, b)])
    assert s3(embed, x, x_cf) == pytest.approx(cosines.mean(), abs=1e-12)
    for least in (-.2, .5): assert fva(embed, x, x_cf, least) == pytest.approx((cosines > least).mean())
    before, after = ((judge(v).numpy()[there] > 0).astype(float) for v in (x, x_cf))
    delta = after - before
    changes = attribute_changes(judge, x, x_cf)
    assert np.array_equal(changes.numpy(), delta) and mnac(changes) == pytest.approx(np.abs(delta).sum(1).mean())
    for q in range(5):
        with np.errstate(invalid="ignore"):
            ours, real = (np.nan_to_num([np.corrcoef(v[:, q], v[:, i])[0, 1] for i in range(5)])
                          for v in (delta, labels.double().numpy()))
        np.testing.assert_allclose(correlations(changes, q).numpy(), ours, atol=1e-12)
        assert correlation_difference(changes, labels, q) == pytest.approx(np.abs(ours - real).sum(), abs=1e-12)

def test_nothing_changed(case):
    "Then CD is the sum of the labels' own correlations, and the person is the same."
    x, _, embed, judge, labels = case
    changes = attribute_changes(judge, x, x)
    assert mnac(changes) == 0 and fva(embed, x, x) == 1 and s3(embed, x, x) == pytest.approx(1)
    assert correlation_difference(changes, labels, 2) == pytest.approx(correlations(labels, 2).abs().sum().item())

def test_who_measured_is_in_the_name(case):
    x, x_cf, embed, judge, labels = case
    found = attribute_metrics(x, x_cf, ("a", embed), ("b", judge), labels, 0)
    assert list(found) == ["FVA@a", "S3@a", "MNAC@b", "CD@b"]
    with pytest.raises(MirrorError, match="of 5 attributes, labels of 4"):
        correlation_difference(attribute_changes(judge, x, x_cf), labels[:, :4], 0)
    nothing = torch.full_like(x, torch.nan)
    assert np.isnan(s3(embed, x, nothing)) and np.isnan(mnac(attribute_changes(judge, x, nothing)))

def test_published_rows():
    assert set(FIELD.columns) == {"method", "source", *FIELD_COLUMNS} and FIELD.method.is_unique
    assert FIELD[["FVA", "FR"]].stack().dropna().between(0, 100).all()
    assert FIELD[["S3", "COUT"]].stack().dropna().between(-1, 1).all()
    assert FIELD.source.str.fullmatch(r"\d{4}\.\d{5}").all()
