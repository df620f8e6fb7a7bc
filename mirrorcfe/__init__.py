__version__ = "0.0.1"

import warnings

# fastai.layers calls torch.jit.script when it is imported, and recent versions of torch warn every user that this
# function is deprecated. Only fastai can change that. This file is imported before every module of the package, so the
# warning does not reach the user.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is (deprecated|not supported)", category=FutureWarning)

def __getattr__(name):
    "Import what is asked for by name, and torch with `mirrorcfe.explain`: `import mirrorcfe` takes no time."
    if name == 'explain': from mirrorcfe.one_call import explain as found
    elif name == 'MirrorError': from mirrorcfe.core import MirrorError as found
    else: raise AttributeError(f"module 'mirrorcfe' has no attribute {name!r}")
    return found
