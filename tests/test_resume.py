"Training killed by SIGKILL goes on from its checkpoint and ends at the weights of an unbroken run."
import signal, time
import pytest, torch
from safetensors.torch import load_file
from processes import Started

RUN = """
import sys
from mirrorcfe.classifiers import get_classifier
from mirrorcfe.data import get_dls
from mirrorcfe.explainer import MirrorCFE
cfe = MirrorCFE(get_classifier('digits', device='cpu'), seed=3, amp=False, steps=24,
                autoencoder_steps=2, student_steps=2)
cfe.fit(get_dls('digits', bs=16, steps=6, device='cpu'), folder=sys.argv[1], progress=False).save(sys.argv[2])
"""

def start(folder, kept): return Started(RUN, [folder, kept], kept.with_suffix('.said'))

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_killed_training_resumes_to_the_same_weights(tmp_path):
    whole = start(tmp_path/'a', tmp_path/'whole')
    broken, state = start(tmp_path/'b', tmp_path/'resumed'), tmp_path/'b/checkpoint.pt'
    for _ in range(1200):
        if state.exists() or not broken.running: break
        time.sleep(.05)
    assert broken.kill() == -signal.SIGKILL, 'it ended before it could be killed'
    done = torch.load(state, weights_only=True)['epoch'] + 1
    assert 1 <= done < 4
    assert start(tmp_path/'b', tmp_path/'resumed').wait() == 0 and whole.wait() == 0
    a, b = (load_file(tmp_path/n/'nets.safetensors') for n in ('whole', 'resumed'))
    assert all(torch.equal(a[n], b[n]) for n in a)
    lines = (tmp_path/'b/history.csv').read_text().splitlines()
    assert [line.split(',')[0] for line in lines] == ['epoch', '0', '1', '2', '3']
    assert len(list((tmp_path/'b/samples').iterdir())) == 4 and not list((tmp_path/'b').glob('.*.part'))
