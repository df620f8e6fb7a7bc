"What a method returns: the first counterfactual, the outcome in numbers, slices, comparison, the file."
import copy, json, pickle, subprocess, sys
from dataclasses import fields, replace
from types import SimpleNamespace
import numpy as np, pytest, torch
from torch import nn
from mirrorcfe.core import MirrorError
from mirrorcfe.explanation import _ADDED_BY, Explanation, FirstCFE, TargetConfidence, _tensors, two_ended
from mirrorcfe.features import Classifier
from mirrorcfe.storage import write_tensors
from tiny import tiny

NAN = [float("nan")]*3

def three(*rows, source=0, target=1, ks=(0, .5, 1), **kw):
    "One image for each of `rows`, the achieved probabilities of three classes at every step."
    achieved = torch.tensor(rows)
    B, K = achieved.shape[:2]
    path = torch.arange(B*K).float().view(B, K, 1, 1, 1).expand(B, K, 1, 2, 2)/10
    source, target = torch.tensor(source).expand(B), torch.tensor(target).expand(B)
    return Explanation(torch.zeros(B, 1, 2, 2), source, target, torch.tensor(ks), path, torch.full_like(achieved, 1/3),
                       achieved, ["cat", "dog", "fox"], **kw)

@pytest.fixture
def ex():
    "Three images, four steps: one is found at the second step, one never flips, one is its target already."
    out = tiny(K=4, gains=(1., .3, 1.), same=True)
    out.drawn_ks = torch.arange(12).view(3, 4)/12
    out.truth = torch.tensor([0, 2, 1])
    out.target_confidence = requests()
    out.believed = torch.tensor([[.4, .9], [torch.nan, .1], [torch.nan]*2])
    out.unlike = torch.tensor([.5, 1.5, .2])
    out.residual = torch.tensor([0., .3, 2.])
    return out

def requests(B=3, P=2):
    values = [torch.rand(B, n, generator=torch.Generator().manual_seed(n + B)) for n in (P, 2, P, P, P)]
    return TargetConfidence(*values, torch.rand(B, P, 1, 16, 16), torch.rand(B, P), tol=.07)

# --- the first counterfactual ----------------------------------------------------------------------------------------

SOURCE, TARGET, THIRD = [.8, .1, .1], [.1, .8, .1], [.1, .1, .8]

@pytest.mark.parametrize("name,row,first", [
    ("at the last step", [SOURCE, SOURCE, TARGET], 2),
    ("the first of two", [SOURCE, TARGET, TARGET], 1),
    ("at once", [TARGET, SOURCE, SOURCE], 0),
    ("and lost again", [SOURCE, TARGET, SOURCE], 1),
    ("never", [SOURCE, SOURCE, SOURCE], -1),
    ("the target wins with .4", [SOURCE, [.35, .4, .25], TARGET], 1),
    ("the target wins with less than a half to the end", [SOURCE, [.3, .38, .32], [.35, .4, .25]], 1),
    ("a tie at .5 is no win", [SOURCE, [.5, .5, 0.], SOURCE], -1),
    ("another class has more than .5", [SOURCE, [.51, .5, 0.], [.1, .5, .6]], -1),
    ("a third class is predicted", [SOURCE, THIRD, THIRD], -1),
    ("the third class gives way", [SOURCE, THIRD, [.2, .45, .35]], 2),
    ("missing images do not count", [NAN, SOURCE, TARGET], 2)], ids=lambda v: v if isinstance(v, str) else "")
def test_first_cfe_is_the_first_predicted_as_the_target(name, row, first):
    e = three(row)
    assert e.first_index.tolist() == [first]
    assert e.status == ["found" if first >= 0 else "never flipped"]
    if first >= 0:
        assert e.first_k.item() == e.ks[first] and torch.equal(e.x_cf[0], e.path[0, first]) and e.reason == [""]
        assert e.table().confidence_first[0] == pytest.approx(row[first][1])
    else:
        assert e.first_k.isnan().all() and e.x_cf.isnan().all()
        assert e.table()[["first_k", "confidence_first", "l1_first"]].isna().all(axis=None)
        assert e.reason[0].startswith("no drawn image was predicted dog")

def test_already_target_is_never_found():
    e = three([NAN]*3, [TARGET]*3, source=1)
    assert e.status == ["already target"]*2 and e.first_index.tolist() == [-1, -1] and e.x_cf.isnan().all()
    assert e.reason == ["the classifier predicts dog already"]*2

def test_every_row_has_its_own_classes():
    rows = [[SOURCE, THIRD, TARGET], [SOURCE, THIRD, TARGET], [TARGET, SOURCE, THIRD]]
    e = replace(three(*rows), source=torch.tensor([0, 0, 1]), target=torch.tensor([1, 2, 0]))
    assert e.first_index.tolist() == [2, 1, 1] and e.predicted.tolist() == [[0, 2, 1], [0, 2, 1], [1, 0, 2]]
    assert torch.allclose(e.achieved, torch.tensor([[.1, .1, .8], [.1, .8, .1], [.1, .8, .1]]))
    e.intended_probs = e.achieved_probs.flip(1)
    assert torch.equal(e.intended, e.achieved.flip(1))
    assert e.table().source.tolist() == ["cat", "cat", "dog"] and e.table().target.tolist() == ["dog", "fox", "cat"]

def test_nothing_drawn_is_predicted_as_the_source():
    e = replace(three([NAN, [NAN[0], .9, .1], TARGET]), source=torch.tensor([2]))
    assert e.predicted.tolist() == [[2, 2, 1]]

def test_the_reason_names_the_highest_confidence():
    assert three([[.9, .05, .05], [.5, .45, .05], [.6, .3, .1]]).reason[0].endswith("reached 0.45 at most")
    assert three([NAN, [.6, .3, .1], NAN]).reason[0].endswith("reached 0.30 at most")

# --- numbers ---------------------------------------------------------------------------------------------------------

def test_difference_is_one_number_an_image():
    g = torch.Generator().manual_seed(0)
    x, path = torch.rand(2, 3, 4, 5, generator=g), torch.rand(2, 3, 3, 4, 5, generator=g)
    e = replace(three([SOURCE]*3, [TARGET]*3), x=x, path=path)
    for b in range(2):
        for j in range(3):
            assert e.difference[b, j].item() == pytest.approx((path[b, j] - x[b]).abs().mean().item(), abs=1e-6)
    assert e.table().l1_last.tolist() == pytest.approx(e.difference[:, -1].tolist())
    assert e.table().l1_first[1] == pytest.approx(e.difference[1, 0].item())

def test_table():
    e = three([SOURCE, [.35, .4, .25], TARGET], [SOURCE]*3)
    t = e.table()
    assert t.columns.tolist() == ["source", "target", "status", "verdict", "first_k", "confidence_first", "l1_first",
                                  "confidence_last", "l1_last", "confidence_error", "reason"]
    assert t.confidence_last.tolist() == pytest.approx([.8, .1]) and t.confidence_first[0] == pytest.approx(.4)
    first = (abs(1/3 - .1) + abs(1/3 - .4) + abs(1/3 - .8))/3
    assert t.confidence_error.tolist() == pytest.approx([first, 1/3 - .1], abs=1e-6)

def test_truth_is_a_column_and_not_the_source():
    e = three([SOURCE]*3, [SOURCE]*3, truth=torch.tensor([2, 1]))
    assert e.table().truth.tolist() == ["fox", "dog"] and e.table().source.tolist() == ["cat", "cat"]

@pytest.mark.parametrize("ks", [(0, .5, .99), (0, .25, .5)])
def test_no_reflection_without_the_last_step(ks):
    e = three([SOURCE]*3, ks=ks)
    with pytest.raises(MirrorError, match=f"the steps end at {ks[-1]}.*ks that reach 1"): e.x_reflection

def test_reflection_is_the_last_image():
    e = three([SOURCE]*3, [TARGET]*3)
    assert torch.equal(e.x_reflection, e.path[:, 2])

def test_repr():
    e = three([SOURCE, SOURCE, TARGET], [SOURCE]*3, [TARGET]*3)
    assert repr(e) == "Explanation of 3 images in 3 steps: 2 found, 1 never flipped"

# --- one answer ------------------------------------------------------------------------------------------------------

def bright():
    "Bright images are class 1, dark ones class 0, and a third class is between them."
    head = nn.Linear(1, 3)
    head.weight.data = torch.tensor([[-4.], [4.], [0.]])
    head.bias.data = torch.tensor([0., 0., -1.])
    return Classifier([nn.Identity()], head, ["dark", "bright", "grey"]).freeze()

def test_two_ended():
    clf, x = bright(), torch.full((3, 1, 4, 4), -.5)
    answer = torch.stack([x[0] + 1, torch.full_like(x[1], torch.nan), x[2]])
    e = two_ended(clf, x, answer, torch.tensor([1, 1, 1]), torch.tensor([0, 2, 1]))
    assert e.status == ["found", "never flipped", "never flipped"] and e.first_k[0] == 1 and e.ks.tolist() == [0, 1]
    assert torch.allclose(e.achieved_probs[:, 0], clf(x).softmax(1))
    assert torch.allclose(e.achieved_probs[0, 1], clf(answer[:1]).softmax(1)[0])
    assert e.achieved_probs[1, 1].isnan().all() and e.path[1, 1].isnan().all() and e.intended_probs.isnan().all()
    assert torch.equal(e.path[:, 0], x) and e.table().truth.tolist() == ["dark", "grey", "bright"]
    with pytest.raises(MirrorError, match="one shape"): two_ended(clf, x, answer[:2], torch.tensor([1, 1, 1]))

# --- requested confidences -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("p,achieved,status", [
    (.5, .5, "reached"), (.5, .519, "reached"), (.5, .481, "reached"), (.5, .53, "missed"), (.5, .47, "missed"),
    (.05, .1, "below the source"), (.9, .8, "beyond the reflection"), (.1, .1, "reached"), (.8, .8, "reached"),
    (.5, float("nan"), "already target")])
def test_every_end_of_a_request(p, achieved, status):
    one = lambda *v: torch.tensor([v])
    t = TargetConfidence(one(p), one(.1, .8), one(.25), one(p), one(.5), torch.zeros(1, 1, 1, 2, 2), one(achieved))
    assert t.status == [[status]] and (t.reason == [[""]]) == (status == "reached")
    says = {"missed": ["k = 0.250", f"{achieved:.3f}"], "below the source": ["0.100"],
            "beyond the reflection": ["0.800"]}
    assert all(s in t.reason[0][0] for s in says.get(status, []))

def test_table_of_requests():
    t = requests(2, 3)
    rows = t.table()
    assert rows.image.tolist() == [0]*3 + [1]*3
    for name in ("p", "k", "drawn_k", "intended", "achieved"):
        assert rows[name].tolist() == pytest.approx(getattr(t, name).flatten().tolist())
    assert rows.status.tolist() == sum(t.status, []) and rows.reason.tolist() == sum(t.reason, [])

# --- as a value ------------------------------------------------------------------------------------------------------

INDICES = [
    (0, [0]), (-1, [2]), (np.int64(1), [1]), (np.int32(-1), [2]), (torch.tensor(1), [1]),
    (slice(None), [0, 1, 2]), (slice(1, None), [1, 2]), (slice(5, 9), []),
    (slice(None, None, -1), [2, 1, 0]), (slice(2, 0, -1), [2, 1]),
    ([2, 0], [2, 0]), ((0, 1), [0, 1]), ([], []), (range(2), [0, 1]), (np.array([0, 2]), [0, 2]),
    (torch.tensor([-1, 0]), [2, 0]), (torch.tensor([1, 1], dtype=torch.uint8), [1, 1]),
    ([True, False, True], [0, 2]), (np.array([True, False, False]), [0]), (torch.tensor([False, True, True]), [1, 2])]

@pytest.mark.parametrize("i,rows", INDICES, ids=str)
def test_every_usual_index(ex, i, rows):
    some = ex[i]
    assert isinstance(some, Explanation) and len(some) == len(rows)
    assert torch.equal(some.ks, ex.ks) and some.classes == ex.classes
    for f in fields(Explanation):
        v, whole = getattr(some, f.name), getattr(ex, f.name)
        if f.name == "ks" or not isinstance(v, torch.Tensor): continue
        assert torch.equal(v.nan_to_num(-9), whole[rows].nan_to_num(-9)), f.name
    assert torch.equal(some.target_confidence.p, ex.target_confidence.p[rows]) and some.target_confidence.tol == .07
    assert some.status == [ex.status[j] for j in rows] and len(some.table()) == len(rows)

@pytest.mark.parametrize("i", [.5, "0", None, ..., [0., 1.], [True, False], torch.tensor([True]), [[0]], {}, True, 1j])
def test_other_indices_get_one_error(ex, i):
    for what in (ex, ex.target_confidence):
        with pytest.raises(MirrorError, match="an int, a slice, integers or a mask of 3"): what[i]

@pytest.mark.parametrize("i", [3, -4, [0, 3], np.int64(3), torch.tensor([5])])
def test_outside_is_an_index_error(ex, i):
    for what in (ex, ex.target_confidence):
        with pytest.raises(IndexError, match="of 3"): what[i]

def test_iteration_ends(ex): assert [len(one) for one in ex] == [1, 1, 1]

def test_what_a_method_adds_is_sliced_too(ex):
    ex.found, ex.edits, ex.nothing = torch.tensor([True, False, True]), requests(), None
    some = ex[::-1][:2]
    assert some.found.tolist() == [True, False] and some.edits == ex.edits[[2, 1]] and some.nothing is None

def test_slicing_leaves_the_whole_alone(ex):
    before = copy.deepcopy(ex)
    part = ex[[0]]
    part.path.zero_()
    part.classes = []
    assert ex == before

def searched(B=3):
    values = [torch.rand(shape, generator=torch.Generator().manual_seed(B)) for shape in ((B,), (B,), (B, 1, 16, 16))]
    return FirstCFE(*values, torch.rand(B, 3), torch.rand(B, 3))

def test_equality(ex):
    ex.first = searched()
    ex.prepared = "crop 28"
    assert ex == copy.deepcopy(ex) == copy.copy(ex) == pickle.loads(pickle.dumps(ex))
    assert ex in [ex[:1], copy.deepcopy(ex)]
    assert ex != ex[::-1] and ex != ex[:2] and ex != 3 and ex != None
    for f in fields(Explanation):
        v = getattr(ex, f.name)
        other = v + 1 if isinstance(v, torch.Tensor) else v[::-1]
        assert ex != replace(ex, **{f.name: other}) and ex != replace(ex, **{f.name: None}), f.name
    assert ex.first != searched(4) and ex.first != 3
    for f in fields(TargetConfidence):
        v = getattr(ex.target_confidence, f.name)
        assert ex.target_confidence != replace(ex.target_confidence, **{f.name: v + 1}), f.name
    filled = replace(ex, path=ex.path.nan_to_num(0))
    assert ex != filled and filled != ex, "NaN equals NaN only"
    with pytest.raises(TypeError, match="unhashable"): {ex}

def test_pictures_come_when_they_are_asked_for(root):
    "Whoever imports only this module can draw; and has not paid for it before."
    code = """if True:
        import sys, torch
        from mirrorcfe.explanation import Explanation
        p = torch.tensor([[[.9, .1], [.1, .9]]])
        x, path = torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 1, 8, 8)
        ex = Explanation(x, torch.tensor([0]), torch.tensor([1]), torch.tensor([0., 1]), path, p, p, ["a", "b"])
        later = ("mirrorcfe.show", "mirrorcfe.animate", "mirrorcfe.widget", "ipywidgets")
        print([m for m in later if m in sys.modules])
        print(type(ex.show()).__name__, type(ex.frame(0, size=160)).__name__, type(ex.widget()).__name__)
        try: ex.paint
        except AttributeError as e: print(e)"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=root, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", "Figure Image PathWidget", "an Explanation has no 'paint'"]

def test_every_late_method_exists():
    import mirrorcfe.animate, mirrorcfe.show, mirrorcfe.widget
    for name, module in _ADDED_BY.items(): assert getattr(Explanation, name).__module__ == f"mirrorcfe.{module}"

# --- file ------------------------------------------------------------------------------------------------------------

def masks(ex):
    g = torch.Generator().manual_seed(0)
    return (torch.rand(len(ex), len(ex.ks), 4, 4, generator=g) > .5).float()

@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(tmp_path, channels):
    ex = tiny(channels=channels, same=True, classes=("T-shirt/top", "érythroblaste", "<b>"))
    m = masks(ex)
    back = Explanation.load(ex.save(tmp_path/"a.safetensors", m))
    assert ex == back and torch.equal(back.masks, m) and back.status == ex.status
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    again = Explanation.load(back.save(tmp_path/"b.safetensors"))
    assert torch.equal(again.masks, m), "what came with a file goes on with it"
    assert torch.equal(back[1:].masks, m[1:]), "a part keeps its masks"

def test_round_trip_of_everything(tmp_path, ex):
    assert Explanation.load(ex.save(tmp_path/"a.safetensors")) == ex
    assert Explanation.load(ex[::-1].save(tmp_path/"a.safetensors")) == ex[::-1], "an older file is replaced"
    assert Explanation.load(ex[[]].save(tmp_path/"a.safetensors")) == ex[[]]

def test_file_executes_nothing(tmp_path, ex):
    data = ex.save(tmp_path/"a.safetensors").read_bytes()
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    assert b"pickle" not in data and header["__metadata__"].keys() == {"explanation", "sha256"}

@pytest.mark.parametrize("name", ["a.pt", "a", "a.safetensors.txt"])
def test_save_refuses_a_suffix(tmp_path, ex, name):
    with pytest.raises(MirrorError, match="ends in .safetensors"): ex.save(tmp_path/name)
    assert list(tmp_path.iterdir()) == []

def test_save_into_a_file(tmp_path, ex):
    (tmp_path/"f").write_text("x")
    with pytest.raises(MirrorError, match="cannot write"): ex.save(tmp_path/"f"/"a.safetensors")

def test_save_refuses_masks_of_another(tmp_path, ex):
    with pytest.raises(MirrorError, match="masks must be those of this explanation"):
        ex.save(tmp_path/"a.safetensors", masks(ex)[:1])
    assert list(tmp_path.iterdir()) == []

def broken(ex, file, drop=None, format=1, classes=None, **tensors):
    "A sound file of an explanation with changes."
    v = _tensors(ex, None) | tensors
    v.pop(drop, None)
    about = dict(format=format, version="0", classes=classes or ex.classes, tol=None)
    write_tensors(file, v, about, "explanation")
    return file

NO_FIT = "do not fit together, look at `{}`"
BROKEN = {"a later format": (dict(format=2), "has format 2"),
          "no path": (dict(drop="path"), NO_FIT.format("path")),
          "a path of fewer steps": (dict(path=torch.zeros(3, 2, 1, 16, 16)), NO_FIT.format("path")),
          "too few classes": (dict(classes=["a"]), NO_FIT.format("intended_probs")),
          "a target outside": (dict(target=torch.tensor([0, 1, 7])), NO_FIT.format("target")),
          "a negative truth": (dict(truth=torch.tensor([0, 1, -1])), NO_FIT.format("truth")),
          "images of one dimension": (dict(x=torch.zeros(3)), NO_FIT.format("x")),
          "steps of two dimensions": (dict(ks=torch.zeros(4, 1)), NO_FIT.format("ks")),
          "other drawn steps": (dict(drawn_ks=torch.zeros(3, 5)), NO_FIT.format("drawn_ks")),
          "other masks": (dict(masks=torch.zeros(3, 1, 2, 2)), NO_FIT.format("masks")),
          "a request without its span": (dict(drop="target_confidence.span"), NO_FIT.format("target_confidence")),
          "requests of another size": ({"target_confidence.x": torch.zeros(3, 2, 1, 8, 8)},
                                       NO_FIT.format("target_confidence"))}

@pytest.mark.parametrize("case", BROKEN)
def test_load_refuses(tmp_path, ex, case):
    changes, message = BROKEN[case]
    with pytest.raises(MirrorError, match=message): Explanation.load(broken(ex, tmp_path/"a.safetensors", **changes))

@pytest.mark.parametrize("data", [b"", b"x", b"\x80\x04K\x01.", b"\xff"*40])
def test_load_refuses_rubbish(tmp_path, data):
    (tmp_path/"a.safetensors").write_bytes(data)
    with pytest.raises(MirrorError, match="is damaged"): Explanation.load(tmp_path/"a.safetensors")

def test_load_refuses_other_safetensors(tmp_path):
    write_tensors(tmp_path/"a.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(MirrorError, match="holds no explanation"): Explanation.load(tmp_path/"a.safetensors")

# --- who believes it -------------------------------------------------------------------------------------------------

class Shares:
    "A panel that believes what it is told to, image by image, first CFEs and then last images."
    def __init__(self, first, last): self.answers = [torch.tensor(first), torch.tensor(last)]
    def believed(self, x, target): return SimpleNamespace(share=self.answers.pop(0))

class Far:
    def distance(self, x): return torch.arange(len(x)).float()

def walked(achieved, source=0, classes=("cat", "dog")):
    "An explanation of one image whose achieved confidences in the dog are given."
    p = torch.tensor(achieved)
    probs = torch.stack([1 - p, p], 1)[None]
    n = len(achieved)
    meant = torch.linspace(.01, .99, n)
    x = torch.zeros(1, 1, 4, 4)
    return Explanation(x=x, source=torch.tensor([source]), target=torch.tensor([1]), ks=torch.linspace(0, 1, n),
                       path=x[:, None].repeat(1, n, 1, 1, 1), intended_probs=torch.stack([1 - meant, meant], 1)[None],
                       achieved_probs=probs, classes=list(classes))

@pytest.mark.parametrize("achieved,first,last,says", [
    ([0., .6, .99], .4, .86, "believed: 86 % of the judges see dog in the last image, 40 % in the first "
                             "counterfactual"),
    ([0., .6, .99], .9, .5, "valid, not believed: 50 % of the judges see dog in the last image, 90 % in the first "
                            "counterfactual"),
    ([0., .4, .99], .2, .2, "valid, not believed: 20 % of the judges see dog in the last image"),
    ([0., .9, .3], .8, 0., "believed: 80 % of the judges see dog in the first counterfactual; "
                           "found, not fully reflected: 0.30 where 0.99 was meant"),
    ([0., .9, .78], .8, 1., "believed: 100 % of the judges see dog in the last image, 80 % in the first "
                            "counterfactual; found, not fully reflected: 0.78 where 0.99 was meant")])
def test_a_word_for_every_result(achieved, first, last, says):
    ex = walked(achieved).judged(Shares([first], [last]))
    assert ex.verdict == [says] and ex.status == ["found"] and ex.table().verdict.tolist() == [says]

def test_what_is_not_found_keeps_its_reason():
    ex = walked([0., .2, .4]).judged(Shares([torch.nan], [.9]))
    assert ex.verdict == ex.reason and "never" not in ex.verdict[0] and "0.40 at most" in ex.verdict[0]
    assert walked([0., .6, 1.]).verdict == ["not judged"]

def test_a_source_that_is_painted_over():
    ex = walked([0., .6, 1.])
    ex.path[:, 0] += .09
    assert "reproduced" not in ex.verdict[0]
    ex.path[:, 0] += .02
    assert ex.verdict[0].endswith("the source is not reproduced: at k = 0 it is off by 0.11")

def test_unlike_is_kept_cut_and_saved(tmp_path):
    panel = Shares([.1]*3, [.9]*3)
    panel.usual = Far()
    ex = walked([0., .6, 1.])[[0, 0, 0]].judged(panel)
    assert ex.unlike.tolist() == [0, 1, 2]
    unlike = ["unlike the training images" in v for v in ex.verdict]
    far = "the source is unlike the training images (2.0 times as far from them as is usual); "
    assert unlike == ex.is_unlike == [False, False, True] and ex.verdict[2] == far + ex.verdict[1], "before the votes"
    again = Explanation.load(ex.save(tmp_path/"ex.safetensors"))
    assert again == ex and again.verdict == ex.verdict and again[2].unlike.tolist() == [2]
    assert ex != walked([0., .6, 1.])[[0, 0, 0]]

def test_the_turn_of_the_open_loop():
    ex = walked([0., .6, 1.])
    assert "first_drawn_k" not in ex.table() and ex.first_drawn_k.tolist() == [.5]
    ex.drawn_ks = torch.tensor([[0., .83, 1.]])
    assert ex.table().first_drawn_k.tolist() == pytest.approx([.83]) and ex.first_k.tolist() == [.5]
    ex.achieved_probs = ex.achieved_probs[:, :1].repeat(1, 3, 1)
    assert ex.first_drawn_k.isnan().all()
