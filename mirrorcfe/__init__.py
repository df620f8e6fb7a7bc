__version__ = "0.0.1"

import warnings

# fastai.layers calls torch.jit.script when it is imported, and recent versions of torch tell every user that this function
# is deprecated. Only fastai can change that; every module here is imported after this file, so its users need not read it.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is (deprecated|not supported)", category=FutureWarning)
