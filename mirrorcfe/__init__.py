__version__ = "0.0.1"

import warnings
# fastai calls `torch.jit.script` while it is imported; torch announces its removal, and a user can do nothing about it.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is", FutureWarning, r"torch\.jit\._script")
