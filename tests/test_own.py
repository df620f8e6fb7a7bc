"Your own classifier and your own images: what is read, what is refused, and a training that is killed."
import errno, json, os, shutil, warnings, weakref
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
import mirrorcfe.cli as cli, mirrorcfe.images, mirrorcfe.own as own, mirrorcfe.runs as runs
from mirrorcfe.cli import main
from mirrorcfe.classifiers import build_network
from mirrorcfe.core import MirrorError
from mirrorcfe.features import NORMALISE
from mirrorcfe.own import (CHECKPOINT_STEPS, CLASSIFIER_STEPS, load_images, match_classes, open_classifier, open_data,
                           read_weights)
from mirrorcfe.runs import fit_weights, load_explainer, load_network, open_network, save_network
from mirrorcfe.loop import Checkpoint
from mirrorcfe.storage import write_json
from commands import TRAIN, refused, rows, train_quickly
from tiny import tiny

# --- classifiers from files ------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    "Weights of a resnet18 of two classes, in the forms in which they come."
    from torchvision.models import resnet18
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    net = resnet18(num_classes=2).eval()
    weights = {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(weights, folder/"net.safetensors")
    torch.save(weights, folder/"net.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, folder/"parallel.pt")
    torch.save(net, folder/"whole.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)   # torch will give TorchScript up
        torch.jit.script(torch.nn.Linear(2, 2)).save(folder/"script.pt")
    torch.save([1, 2], folder/"list.pth")
    (folder/"half.safetensors").write_bytes((folder/"net.safetensors").read_bytes()[:5000])
    return folder, net

@pytest.mark.parametrize("file", ["net.safetensors", "net.pth", "parallel.pt"])
def test_weights_of_torchvision(networks, file):
    folder, net = networks
    ours = open_classifier(folder/file, "resnet18", ["a", "b"], normalise="none")
    x = torch.rand(2, 3, 64, 64)*2 - 1
    torch.testing.assert_close(ours(x), net(x), rtol=1e-4, atol=1e-4)
    assert ours.classes == ["a", "b"]

@pytest.mark.parametrize("normalise,change", [("unit", lambda x: (x + 1)/2), ("none", lambda x: x)])
def test_normalise(networks, normalise, change):
    folder, net = networks
    x = torch.rand(2, 3, 64, 64)*2 - 1
    ours = open_classifier(folder/"net.pth", "resnet18", normalise=normalise)
    assert normalise in NORMALISE
    torch.testing.assert_close(ours(x), net(change(x)), rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize("file,message", [
    ("whole.pth", "whole model, save its weights alone"),
    ("script.pt", "cannot be read as plain weights"),
    ("list.pth", "holds no state dict"),
    ("half.safetensors", "cannot be read as plain weights"),
    ("none.pth", "no such file")])
def test_nothing_is_executed(networks, file, message):
    with pytest.raises(MirrorError, match=message): open_classifier(networks[0]/file, "resnet18")

def test_a_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return (Path(tmp_path/"ran").touch, ())
    torch.save({"weight": Evil()}, tmp_path/"evil.pth")
    with pytest.raises(MirrorError, match="cannot be read as plain weights"): read_weights(tmp_path/"evil.pth")
    assert not (tmp_path/"ran").exists()

@pytest.mark.parametrize("arch,message", [
    ("resnet50", "not those of resnet50"),
    ("resnet", "no network 'resnet'"),
    ("small_resnet", "not those of small_resnet"),
    (None, "add --arch")])
def test_wrong_network(networks, arch, message):
    with pytest.raises(MirrorError, match=message): open_classifier(networks[0]/"net.pth", arch)

def test_network_that_does_not_end_in_a_linear_layer(monkeypatch):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*64*64, 2), torch.nn.Softplus()).eval()
    monkeypatch.setattr(runs, "_library_network", lambda *a: net)
    with pytest.raises(MirrorError, match="comes after it"): open_network("flat", net.state_dict())

NETS = """import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4*7*7, 2))

def number(): return 3
"""

def test_a_network_of_one_s_own_by_a_factory(tmp_path):
    "Kept by weights and name; the file that builds it is executed only where it is named again."
    (tmp_path/"nets.py").write_text(NETS)
    factory = f"{tmp_path/'nets.py'}:build"
    net = open_classifier(None, None, ["a", "b"], 3, 16, "none", factory)
    assert not net.is_gap and net.classes == ["a", "b"]
    model = runs.call_factory(factory)
    with torch.no_grad(): model[0].bias.add_(1.)
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, tmp_path/"w.ckpt")
    other = open_classifier(tmp_path/"w.ckpt", None, ["a", "b"], 3, 16, "none", factory)
    assert other.fingerprint() != net.fingerprint()
    save_network(other, tmp_path/"classifier")
    assert "nets.py" in json.loads((tmp_path/"classifier.json").read_text())["factory"]
    with pytest.raises(MirrorError, match="built by nets.py:build.*--factory"): load_network(tmp_path/"classifier")
    assert load_network(tmp_path/"classifier", factory=factory)[0].fingerprint() == other.fingerprint()
    for wrong, says in (("nets.py", "takes FILE:FUNCTION"), (f"{tmp_path/'nets.py'}:no", "AttributeError"),
                        (f"{tmp_path/'nets.py'}:number", "returns int: it must return a torch module")):
        with pytest.raises(MirrorError, match=says): open_classifier(None, None, None, 3, 16, "none", wrong)
    with pytest.raises(MirrorError, match="the weights are not those of"):
        open_network(None, {"weight": torch.zeros(2, 2)}, None, 3, 16, "none", factory)

EITHER = NETS.replace("def number", """
class Grey(nn.Module):
    def forward(self, x): return x.mean(1, keepdim=True).expand(-1, 3, -1, -1)

def number""").replace("Sequential(", "Sequential(Grey(), ")

@pytest.mark.parametrize("network", [1, 3])
@pytest.mark.parametrize("pictures", ["grey", "colour"])
def test_pictures_are_read_as_the_network_takes_them(tmp_path, network, pictures):
    "Grey ones that are saved in colour, and those in colour for a network of one channel."
    (tmp_path/"nets.py").write_text(NETS.replace("Conv2d(3", f"Conv2d({network}"))
    factory = f"{tmp_path/'nets.py'}:build"
    for folder in "ab":
        (tmp_path/"data"/folder).mkdir(parents=True)
        for i in range(5):
            pixel = (40*i, 40*i, 40*i) if pictures == "grey" else (40*i, 9, 200)
            Image.new("RGB", (16, 16), pixel).save(tmp_path/"data"/folder/f"{i}.png")
    def opened(data, size, normalise="unit", **how):
        return own.open_classifier_and_data(None, None, None, size, normalise, data, 2, "cpu", 0, factory=factory,
                                            **how)
    for size, how in ((16, {}), (None, dict(transform=own.make_preprocessing(dict(resize=(16, 16)))))):
        net, dls = opened(tmp_path/"data", size, **how)
        assert net.in_channels == dls.spec.channels == dls.train.dataset.x.shape[1] == network
    (tmp_path/"nets.py").write_text(EITHER)
    assert opened(tmp_path/"data", 16)[1].spec.channels == (1 if pictures == "grey" else 3)   # it takes either

@pytest.mark.parametrize("network", [1, 3])
def test_no_picture_is_looked_at_where_the_network_decides(tmp_path, monkeypatch, network):
    (tmp_path/"nets.py").write_text(NETS.replace("Conv2d(3", f"Conv2d({network}"))
    for folder in "ab":
        (tmp_path/"data"/folder).mkdir(parents=True)
        for i in range(5): Image.new("RGB", (16, 16), (40*i, 9, 200)).save(tmp_path/"data"/folder/f"{i}.png")
    def opened():
        return own.open_classifier_and_data(None, None, None, 16, "unit", tmp_path/"data", 2, "cpu", 0,
                                            factory=f"{tmp_path/'nets.py'}:build")[1]
    asked = []
    monkeypatch.setattr(own, "_is_grey", lambda *a: asked.append(a))
    assert opened().spec.channels == network and not asked
    (tmp_path/"nets.py").write_text(EITHER)
    assert opened().spec.channels == 3 and asked

def test_a_note_says_that_colours_are_lost_and_that_grey_is_repeated(tmp_path, monkeypatch, capsys):
    "Once in each command, and what was done to the pictures says so too."
    train_quickly(monkeypatch)
    for module in (runs, own): monkeypatch.setattr(module, "write_pictures", lambda *a: {})
    monkeypatch.setattr(own, "_LOOKED_AT", 10)
    for folder in "ab":
        (tmp_path/"data"/folder).mkdir(parents=True)
        for i in range(10):
            pixel = (20*i, 9, 200) if i != 2 else (99, 99, 99)
            Image.new("RGB", (16, 16), pixel).save(tmp_path/"data"/folder/f"{i}.png")
    def said(command, *argv):
        assert main([command, *map(str, argv), "--device", "cpu"]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "channel" in line]
    def train(name, n):
        (tmp_path/f"{name}.py").write_text(NETS.replace("Conv2d(3", f"Conv2d({n}"))
        factory = "--factory", f"{tmp_path/name}.py:build"
        how = "--normalise", "unit", "--size", 16, "--steps", 1, "--bs", 4, "--n", 1, "--measure", 2
        saved = "--explainer", tmp_path/name, *factory
        return saved, said("train", "--data", tmp_path/"data", *factory, *how, "--out", tmp_path/name)
    note = "note: {} in colour; the network takes one channel: {} read in grey"
    grey, trained = train("grey", 1)
    every_second = note.format("8 of 10 pictures looked at are", "they are")
    assert trained == [every_second], "and of these one in five is grey"
    about = rows(tmp_path/"grey"/"results.csv")[0]
    assert about["pictures"] == "the middle, bicubic, in grey"
    pictures = [tmp_path/"data"/"a"/f"{i}.png" for i in (1, 2)]
    out = "--out", tmp_path/"more"
    assert said("explain", *pictures, *grey, *out) == [note.format("1 of 2 pictures is", "it is")]
    assert said("explain", pictures[0], *grey, "--out", tmp_path/"one") == [note.format("the picture is", "it is")]
    assert rows(tmp_path/"more"/"results.csv")[0]["pictures"] == "the middle, bicubic, in grey"
    assert said("explain", pictures[1], *grey, *out) == []
    assert said("evaluate", "--n", 2, "--steps", 3, *grey, "--out", tmp_path/"table") == trained
    assert "Pictures: the middle, bicubic, in grey." in (tmp_path/"table"/"results.md").read_text()
    colour, trained = train("colour", 3)
    assert trained == [] and rows(tmp_path/"colour"/"results.csv")[0]["pictures"] == "the middle, bicubic"
    repeated = "note: the pictures are grey; the network takes three channels: each is given three times"
    assert said("explain", pictures[1], *colour, *out) == [repeated]

def test_a_network_that_does_not_take_the_channels_it_is_given(tmp_path):
    (tmp_path/"nets.py").write_text(NETS + NETS.replace("build", "grey").replace("Conv2d(3", "Conv2d(1"))
    colour, grey = (f"{tmp_path/'nets.py'}:{name}" for name in ("build", "grey"))
    with pytest.raises(MirrorError, match=r"takes 3 channels \(colour\), these images have 1: read them with 3, or"):
        open_classifier(None, None, ["a", "b"], 1, 16, "unit", colour)
    with pytest.raises(MirrorError, match=r"takes 1 channel \(grey\), these images have 3: read them with 1, or"):
        open_classifier(None, None, ["a", "b"], 3, 16, "unit", grey)
    with pytest.raises(MirrorError, match="Normalise has 3 means, .* have 1 .*--normalise unit, none or .5/.5"):
        open_classifier(None, None, ["a", "b"], (3, 1), 16, "imagenet", grey)
    (tmp_path/"nets.py").write_text(NETS.replace("2))", "10))"))
    says = "images of digits have 1 channel.*, the network takes 3: give the pictures as"
    with pytest.raises(MirrorError, match=says):
        own.open_classifier_and_data(None, None, None, 16, "unit", "digits", 2, "cpu", 0, factory=colour)

def test_one_attribute_of_several(tmp_path):
    "Three answers of yes or no; the folders are images without and with one of them. It is kept with the network."
    (tmp_path/"nets.py").write_text(NETS.replace("2))", "3), nn.Sigmoid())"))
    factory = f"{tmp_path/'nets.py'}:build"
    (tmp_path/"names.txt").write_text("hat\nbeard\nglasses\n")
    for folder in ("beard", "shaved"):
        (tmp_path/"data"/folder).mkdir(parents=True)
        for i in range(5): Image.new("RGB", (16, 16), (40*i, 9, 200)).save(tmp_path/"data"/folder/f"{i}.png")
    def opened(names, attribute):
        names = names and tmp_path/names
        return own.open_classifier_and_data(None, None, names, 16, "none", tmp_path/"data", 2, "cpu", 0,
                                            factory=factory, attribute=attribute)
    net, dls = opened("names.txt", "beard")
    assert net.classes == dls.vocab == ["shaved", "beard"]
    x = torch.rand(2, 3, 16, 16)*2 - 1
    torch.testing.assert_close(net(x).softmax(1)[:, 1], runs.call_factory(factory).eval()(x)[:, 1])
    save_network(net, tmp_path/"classifier")
    again, about = load_network(tmp_path/"classifier", factory=factory)
    assert about["attribute"] == 1 and again.classes == net.classes and again.fingerprint() == net.fingerprint()
    assert opened(None, "2")[0].classes == ["beard", "shaved"]   # by number, the second folder has it
    with pytest.raises(MirrorError, match="one of the two classes must be called hat"): opened("names.txt", "hat")
    with pytest.raises(MirrorError, match="name the network: give one"): open_classifier(None, "lenet", factory=factory)

def test_one_logit_and_two_names_on_the_command_line(tmp_path, monkeypatch, capsys):
    "The second name is what the logit says yes to, whatever the folders are sorted by."
    (tmp_path/"nets.py").write_text(NETS.replace("2))", "1))"))
    model = runs.call_factory(f"{tmp_path/'nets.py'}:build").eval()
    torch.save({"model_state_dict": {f"_orig_mod.{k}": v for k, v in model.state_dict().items()}}, tmp_path/"w.pth")
    for folder in ("cat", "owl"):
        (tmp_path/"data"/folder).mkdir(parents=True)
        for i in range(5): Image.new("RGB", (16, 16), (40*i, 9, 200)).save(tmp_path/"data"/folder/f"{i}.png")
    opened = []
    def stop(net, *_):
        opened.append(net)
        raise MirrorError("opened: no need to train")
    monkeypatch.setattr(own, "_with_time", stop)
    argv = ["train", "--data", tmp_path/"data", "--factory", f"{tmp_path/'nets.py'}:build", "--size", "16",
            "--classifier", tmp_path/"w.pth", "--normalise", "none", "--device", "cpu", "--out", tmp_path/"out"]
    x = torch.rand(2, 3, 16, 16)*2 - 1
    for names in (None, "owl\ncat\n"):
        if names:
            (tmp_path/"names.txt").write_text(names)
            argv += ["--classes", tmp_path/"names.txt"]
            shutil.rmtree(tmp_path/"out.unfinished")
        assert "opened: no need to train" in refused(capsys, *argv)
        assert opened[-1].classes == (names or "cat\nowl").split()
        torch.testing.assert_close(opened[-1](x).softmax(1)[:, 1], model(x)[:, 0].sigmoid())
    (tmp_path/"names.txt").write_text("owl\ncat\ndog\n")
    shutil.rmtree(tmp_path/"out.unfinished")
    assert "3 class names for a head of 1" in refused(capsys, *argv)

def test_weights_are_found_among_those_of_a_trainer(tmp_path):
    "Lightning keeps the loss's weights beside the network's."
    torch.manual_seed(0)
    plain = build_network("lenet", 3, 1, size=16).stages.model
    plain[-1] = torch.nn.Linear(128, 3)
    kept = {f"module.net.{k}": v for k, v in plain.state_dict().items()} | {"loss.weight": torch.ones(3)}
    torch.save({"model_state_dict": kept, "step": 7}, tmp_path/"w.pth")
    net = open_classifier(tmp_path/"w.pth", "lenet", list("abc"), 1, 16)
    x = torch.rand(2, 1, 16, 16)*2 - 1
    torch.testing.assert_close(net(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
    save_network(net, tmp_path/"n")
    assert load_network(tmp_path/"n")[0].fingerprint() == net.fingerprint()

LAYERS = [torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 3)]

@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("before", ["", "model.", "module.", "_orig_mod.", "module._orig_mod.", "model.net.module.",
                                    "encoder."])
def test_weights_as_trainers_keep_them(tmp_path, key, before):
    "State dicts of DataParallel, torch.compile, Lightning and an average of weights, and the whole of a checkpoint."
    state = torch.nn.Sequential(*LAYERS).state_dict()
    kept = {before + name: v for name, v in state.items()} | ({"n_averaged": torch.tensor(3)} if before else {})
    torch.save({key: kept, "epoch": 3, "optimizer": {}} if key else kept, tmp_path/"w.pth")
    found = fit_weights(read_weights(tmp_path/"w.pth"), state)
    assert list(found) == list(state) and all(torch.equal(v, state[name]) for name, v in found.items())

def test_half_of_a_deeper_network_is_not_taken(tmp_path):
    "Among the weights of a trainer too, a network with more layers may have all the names of one with fewer."
    (tmp_path/"nets.py").write_text(NETS)
    factory = f"{tmp_path/'nets.py'}:build"
    state = runs.call_factory(factory).state_dict()
    for more in ({}, {"4.weight": torch.ones(2, 2)}):
        kept = {f"net.{k}": v for k, v in (state | more).items()} | {"loss.weight": torch.ones(2)}
        torch.save({"state_dict": kept}, tmp_path/"w.pth")
        if not more: assert not open_classifier(tmp_path/"w.pth", None, None, 3, 16, "none", factory).is_gap
    with pytest.raises(MirrorError, match='the weights are not those of .*Unexpected key.*"4.weight"'):
        open_classifier(tmp_path/"w.pth", None, None, 3, 16, "none", factory)

@pytest.mark.parametrize("size, found", [((96, 64), "96x64"), (60, "60x60")])
def test_a_transformer_of_torchvision_takes_squares(size, found):
    with pytest.raises(MirrorError, match=f"vit_b_16 takes squares .* multiple of 16 pixels: found {found}"):
        open_network("vit_b_16", {"heads.head.weight": torch.zeros(2, 8)}, ["a", "b"], size=size)

@pytest.mark.parametrize("name, kw", [("timm/test_vit", {}), ("vit_tiny_patch16_224", {"img_size": 64})])
def test_networks_of_timm(name, kw):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name.removeprefix("timm/"), num_classes=2, **(kw or {"img_size": 64})).eval()
    net = open_network(name, model.state_dict(), ["a", "b"], size=64, normalise=".5,.5,.5/.25,.25,.25")
    x = torch.rand(2, 3, 64, 64)*2 - 1
    torch.testing.assert_close(net(x), model((x/2 + .5 - .5)/.25), rtol=1e-3, atol=1e-4)
    with pytest.raises(MirrorError, match="--normalise takes imagenet.*found '.5,.5/.1'"):
        open_network(name, model.state_dict(), normalise=".5,.5/.1")
    with pytest.raises(MirrorError, match="not those of .*give the size they were trained at, here it is .96, 64"):
        open_network(name, model.state_dict(), ["a", "b"], size=(96, 64))

def test_opened_network_comes_back(networks, tmp_path):
    net = open_network("resnet18", read_weights(networks[0]/"net.pth"), ["a", "b"], size=64)
    save_network(net, tmp_path/"classifier")
    again, about = load_network(tmp_path/"classifier")
    assert again.fingerprint() == net.fingerprint() and about["kind"] == "torchvision"
    by_folder, by_file = open_classifier(tmp_path), open_classifier(tmp_path/"classifier.safetensors")
    assert by_folder.fingerprint() == by_file.fingerprint() == net.fingerprint()

# --- data ------------------------------------------------------------------------------------------------------------

def test_fewer_classes_than_the_classifier(small, tmp_path):
    pixels = small[0].test.dataset.x[0, 0].numpy()
    for c in ("5", "2"):
        (tmp_path/c).mkdir()
        for i in range(4): Image.fromarray(pixels).save(tmp_path/c/f"{i}.png")
    dls = match_classes(open_data(tmp_path, 16), small[1].classes)
    assert dls.c == 10 and set(dls.train.dataset.y.tolist()) == {2, 5}
    assert dls.train.dataset.vocab == small[1].classes and dls.train.dataset.x.shape[1] == 1

def test_looking_for_colour_starts_no_program(tmp_path, monkeypatch):
    "A file called .png that is PostScript inside; and one that is a pipe."
    started = tmp_path/"bin"/"started"
    (tmp_path/"bin").mkdir()
    gs = tmp_path/"bin"/"gs"
    gs.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    Image.new("RGB", (9, 9), "red").save(tmp_path/"b.png")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path/"a.png").write_bytes(eps)
    if hasattr(os, "mkfifo"): os.mkfifo(tmp_path/"c.png")
    assert not own._is_grey(tmp_path) and not started.exists()

def test_photographs_are_not_held_together(tmp_path, monkeypatch, saved):
    "Each is made small before the next one is read."
    for i in range(4): Image.new("L", (40, 40), 60*i).save(tmp_path/f"{i}.png")
    about = load_explainer(saved)[2]
    pictures = []
    alive = []
    read = mirrorcfe.images.read_image
    def noted(*a, **kw):
        alive.append(sum(p() is not None for p in pictures))
        picture = read(*a, **kw)
        pictures.append(weakref.ref(picture))
        return picture
    monkeypatch.setattr(mirrorcfe.images, "read_image", noted)
    files, x, *_ = load_images([tmp_path], about)
    assert len(files) == 4 and x.shape == (4, 1, 16, 16) and max(alive) <= 1
    assert [round(v, 2) for v in x.mean((1, 2, 3)).tolist()] == [-1, -.53, -.06, .41]

@pytest.mark.parametrize("invert, value", [(False, 1), (True, -1)])
def test_transparent_parts_are_white_whatever_the_training_images(tmp_path, saved, invert, value):
    "Those of the explainer are black around the digit; the folders that it is trained on are read so too."
    Image.new("LA", (16, 16), (0, 0)).save(tmp_path/"a.png")
    about = load_explainer(saved)[2]
    with pytest.warns(UserWarning, match="have transparent parts, which are read as white"):
        x = load_images([tmp_path/"a.png"], about, invert=invert)[1]
    assert about["look"]["border"] < -.9 and x.unique().tolist() == [value]

# --- training --------------------------------------------------------------------------------------------------------

def weights(out): return load_file(next((out/"explainer"/"generator").glob("*.safetensors")))

def test_train_whole(trained):
    out, said = trained
    printed = ("2 of 62 images cannot be read and are left out", "right (held out from both)", "Results in",
               "training explainer", "too few test images for a panel of judges")
    for words in printed: assert words in said
    assert sorted(os.listdir(out.parent)) == ["out"], "the unfinished folder is gone"
    model, oracle, about = load_explainer(out)
    assert about["classes"] == ["ei ght", "three"] and model.pair == (1, 0) and about["fit"] == "middle"
    assert about["levels"] == [-1000, 1000]
    assert about["in_channels"] == 1, "grey digits, some stored in colour"
    assert oracle.accuracy is not None
    assert {"results.md", "results.csv", "samples.csv", "training.csv", "explainer"} <= set(os.listdir(out))
    page = (out/"results.md").read_text(encoding="utf-8")
    assert page.startswith("# Mirror-CFE on pets") and "No panel judged these images" in page
    assert all((out/link.split(")")[0]).is_file() for link in page.split("](")[1:])
    assert len(rows(out/"training.csv")) == 2 and all("ei-ght" in f for f in os.listdir(out/"strips"))

def test_steps_of_a_training(): assert 1 < CHECKPOINT_STEPS < CLASSIFIER_STEPS

def test_killed_training_goes_on(pets, tmp_path, monkeypatch, capsys, trained):
    "Stopped after the first checkpoint, the same command ends with the weights of an unbroken run."
    train_quickly(monkeypatch)
    monkeypatch.setattr(runs, "write_pictures", lambda *a: {})   # not the point here, and slow
    argv = ["train", "--data", str(pets), *TRAIN, "--out", str(tmp_path/"out")]
    after_epoch = Checkpoint.after_epoch
    def stop(self):
        after_epoch(self)
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Checkpoint, "after_epoch", stop)
        assert main(argv) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["out.unfinished"]
    monkeypatch.setattr(cli, "show_warning", lambda *a, **k: None)
    assert "of another training (steps 4, now 6)" in refused(capsys, *argv, "--steps", "6")
    with monkeypatch.context() as m:
        m.setattr(own, "train_network", lambda *a: 1/0)
        assert main(argv) == 0, "the networks are not trained again"
    said = capsys.readouterr().out.split("Going on with the training in out.unfinished\n")[1]
    assert said.startswith("This will take about 1.2 s: 2 steps of the explainer 0.2 s, explaining and measuring 1 s\n")
    assert os.listdir(tmp_path) == ["out"]
    for k, v in weights(trained[0]).items(): torch.testing.assert_close(v, weights(tmp_path/"out")[k], rtol=0, atol=0)

def test_an_unfinished_folder_that_is_not_ours_stays(tmp_path):
    "It would be removed at the end of the training."
    (tmp_path/"out.unfinished").mkdir()
    (tmp_path/"out.unfinished/thesis.txt").write_text("years of work")
    with pytest.raises(MirrorError, match="out.unfinished holds other things than a training: move it"):
        with own.UnfinishedRun(tmp_path/"out", dict(steps=1)): pass
    assert (tmp_path/"out.unfinished/thesis.txt").read_text() == "years of work"
    (tmp_path/"out.unfinished/thesis.txt").unlink()
    with own.UnfinishedRun(tmp_path/"out", dict(steps=1)): pass
    assert not (tmp_path/"out.unfinished").exists()

@pytest.mark.parametrize("damage", [lambda s: s[:20], lambda s: s.replace("1", "2"), lambda s: ""])
def test_a_damaged_request_is_refused(tmp_path, damage):
    "Nobody knows which training it was."
    run = own.UnfinishedRun(tmp_path/"out", dict(steps=1))
    run.__enter__().lock.release()
    file = run.path/"request.json"
    file.write_text(damage(file.read_text()))
    for _ in range(2):   # the lock is free again
        with pytest.raises(MirrorError, match="request.json is damaged .*give another --out, or delete that folder"):
            own.UnfinishedRun(tmp_path/"out", dict(steps=2)).__enter__()

def test_half_a_network_of_a_killed_training_is_trained_again(tmp_path, monkeypatch, small):
    dls = SimpleNamespace(spec=SimpleNamespace(name="folder"), device="cpu")
    made = []
    monkeypatch.setattr(own, "train_network", lambda *a: made.append(1) or small[2])
    def get(): return own.get_network(dls, "oracle", tmp_path)
    get()
    get()
    assert made == [1]
    (tmp_path/"oracle.safetensors").write_bytes((tmp_path/"oracle.safetensors").read_bytes()[:99])
    with pytest.warns(UserWarning, match="the oracle is trained again: .*oracle.safetensors is damaged"): get()
    assert made == [1, 1] and get().fingerprint() == small[2].fingerprint()

def test_disk_full_while_training(pets, tmp_path, capsys, monkeypatch):
    "The networks trained so far stay, and the same command goes on."
    train_quickly(monkeypatch)
    monkeypatch.setattr(runs, "write_pictures", lambda *a: {})
    monkeypatch.setattr(cli, "show_warning", lambda *a, **k: None)
    argv = ["train", "--data", str(pets), *TRAIN, "--steps", "1", "--n", "1", "--measure", "2"]
    argv += ["--out", str(tmp_path/"out")]
    def full(*a, **k): raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(torch, "save", full)
        assert "No space left on device" in refused(capsys, *argv)
    assert os.listdir(tmp_path) == ["out.unfinished"]
    assert "classifier.safetensors" in os.listdir(tmp_path/"out.unfinished")
    assert main(argv) == 0 and os.listdir(tmp_path) == ["out"]

def test_train_for_weights_of_torchvision(pets, tmp_path, monkeypatch, capsys):
    from torchvision.models import shufflenet_v2_x0_5
    train_quickly(monkeypatch)
    for module in (runs, own): monkeypatch.setattr(module, "write_pictures", lambda *a: {})
    save_file(shufflenet_v2_x0_5(num_classes=2).state_dict(), tmp_path/"net.safetensors")
    (tmp_path/"names.txt").write_text("three\nei ght\n")
    network = ["--classifier", str(tmp_path/"net.safetensors"), "--arch", "shufflenet_v2_x0_5", "--size", "32"]
    rest = ["--classes", str(tmp_path/"names.txt"), "--steps", "1", "--bs", "2", "--n", "1", "--measure", "1"]
    assert main(["train", "--data", str(pets), *network, *rest, "--out", str(tmp_path/"out"), "--device", "cpu"]) == 0
    model, _, about = load_explainer(tmp_path/"out")
    assert about["arch"] == "shufflenet_v2_x0_5" and model.pair is None
    assert model.classifier.classes == ["three", "ei ght"]
    argv = [str(pets/"three"/"05.png"), "--explainer", str(tmp_path/"out"), "--out", str(tmp_path/"mine")]
    assert main(["explain", *argv, "--device", "cpu"]) == 0

def test_a_factory_is_refused_where_none_built_the_network(trained, pets, tmp_path, capsys):
    (tmp_path/"nets.py").write_text(NETS)
    factory = "--factory", f"{tmp_path/'nets.py'}:build"
    says = "classifier.json holds a small_resnet, which no function of yours builds: leave out --factory"
    argv = "--out", tmp_path/"out", *factory
    assert says in refused(capsys, "explain", pets/"three"/"05.png", "--explainer", trained[0], *argv)
    assert says in refused(capsys, "evaluate", "--explainer", trained[0], *argv)
    assert says in refused(capsys, "train", "--data", pets, "--classifier", trained[0], *argv)

# --- explaining ------------------------------------------------------------------------------------------------------

def test_explain_lists_and_skips(trained, pets, tmp_path, capsys):
    (tmp_path/"three").mkdir()
    for f in ("00.jpg", "05.png", "broken.jpg"): shutil.copy(pets/"three"/f, tmp_path/"three"/f)
    argv = [str(tmp_path/"three"), "--explainer", str(trained[0]), "--out", str(tmp_path/"res"), "--device", "cpu"]
    assert main(["explain", *argv]) == 0
    said = capsys.readouterr().err
    assert "note: 1 of 3 images are left out: " in said
    assert "broken.jpg cannot be read as an image: its contents are of no known kind" in said
    got = rows(tmp_path/"res"/"samples.csv")
    assert [r["file"] for r in got] == ["00.jpg", "05.png"] and {r["truth"] for r in got} == {"three"}

def test_what_a_verdict_adds_is_printed_whatever_the_end(capsys):
    "That a source is unlike the training images is said of one that never flipped, or was its target, as well."
    ex = tiny(gains=(1., .3, 1.), same=True)
    ex.unlike = torch.tensor([.5, 2., 3.])
    own.echo_ends(ex, ["a.png", "b.png", "c.png"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("a.png: left → right: first CFE at k = ") and said[1] == "   not judged"
    assert said[2].startswith("b.png: left → right: unlike the training images; never flipped (no drawn")
    assert said[4].startswith("c.png: right → right: unlike the training images; already target")
    unlike = "   the source is unlike the training images ({} times as far from them as is usual)"
    assert [said[3], said[5]] == [unlike.format("2.0"), unlike.format("3.0")] and len(said) == 6

def test_a_run_begun_by_another_version_is_refused(tmp_path):
    write_json(tmp_path/'steps.json', dict(steps=5, after=1.))
    with pytest.raises(MirrorError, match='was begun by another version'):
        own._with_time(None, None, None, None, 1, 1, None, tmp_path)
